"""Check parity and gradients of every op on every backend: ``python -m dla_kernels verify``.

The reference in fp64 is the truth. A kernel passes at a lower precision if its error is at most twice
that of plain PyTorch at the same precision (plus a few units in the last place, for when PyTorch
happens to be exact).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops, reference
from .attention import Attention, filter_width
from .cells import ALL_RULES, PROJECTIONS, RECURRENT, Cell, accumulate_dtype, weight_shapes
from .reference.heads import moments_of

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """An op on some tensors: ``call(functions, tensors)``, where functions hold the public names."""

    op: str
    cell: Cell | None
    tensors: tuple[Tensor, ...]  # fp64; all are differentiated
    call: Callable[[Any, Sequence[Tensor]], Outputs]
    twice: bool = True  # check second derivatives too; with many inputs that takes long, and `make test` does it

    @property
    def name(self) -> str:
        return self.op if self.cell is None else f"{self.op} {self.cell.rule} {self.cell.projection}"


class Result(NamedTuple):
    backend: str
    op: str
    cell: str
    check: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def functions(backend: str) -> Any:
    """Return the public ops bound to one backend."""
    return SimpleNamespace(**{name: partial(getattr(ops, name), backend=backend) for name in ops.__all__})


def random_weights(cell: Cell, C: int, R: int, **options: Any) -> tuple[Tensor, ...]:
    """Return weights of the right shapes, scaled so that gates are neither saturated nor flat."""
    return tuple(
        torch.randn(shape, **options) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.5)
        for shape in weight_shapes(cell, C, R).values()
    )


def random_attention(C: int, **options: Any) -> Attention:
    """Return filters at which the softmax over layers is not flat."""
    K = filter_width(C)
    return Attention(*(torch.randn(s, **options) * C**-0.25 for s in ((K,), (K,), (C, 1, 3, 3))))


def heads_of(C: int) -> int:
    """Return three heads where they divide C, since three is no power of two; else two, or one."""
    return next(heads for heads in (3, 2, 1) if C % heads == 0)


FORMATS = (torch.contiguous_format, torch.channels_last)


def make_cases(cell: Cell, sizes: Sequence[tuple[int, int]], B: int, C: int, R: int, device: str) -> list[Case]:
    """Return a case for every op that has a cell; every second map is channels_last."""
    fp64: Any = {"dtype": torch.float64, "device": device}
    T, num_state = len(sizes), len(cell.state_names)
    xs = [torch.randn(B, C, H, W, **fp64) for H, W in sizes]
    xs = [x.contiguous(memory_format=torch.channels_last) if t % 2 else x for t, x in enumerate(xs)]
    y = torch.randn(T, B, C, **fp64)
    weights = random_weights(cell, C, R, **fp64)
    state = tuple(torch.rand(B, C, **fp64) for _ in range(num_state))
    pack = PROJECTIONS[cell.projection]
    W = len(weights)

    def scan(f: Any, t: Sequence[Tensor]) -> Outputs:
        return f.scan(t[0], pack(*t[1 : 1 + W]), cell=cell, state=tuple(t[1 + W :]))

    def refresh(f: Any, t: Sequence[Tensor]) -> Outputs:
        return (f.refresh(t[0], tuple(t[1 + W :]), pack(*t[1 : 1 + W]), cell=cell),)

    def layer_update(f: Any, t: Sequence[Tensor]) -> Outputs:
        out, states = f.layer_update(t[:T], pack(*t[T : T + W]), cell=cell, state=tuple(t[T + W :]))
        return (*out, *states)

    H, width = sizes[0]
    maps = [torch.randn(B, C, H, width, **fp64).contiguous(memory_format=form) for form in FORMATS]
    layers = [t for _ in range(2) for t in random_attention(C, **fp64)]
    lam, e = torch.randn(C, **fp64), torch.randn(C, 1, 3, 3, **fp64)

    def light_step(f: Any, t: Sequence[Tensor]) -> Outputs:
        x, o_prev, q, k, v, lam, e, *rest = t
        w, start = pack(*rest[:W]), tuple(rest[W:])
        options = {"heads": heads_of(C), "cell": cell, "state": start, "e": e}
        attention = Attention(q, k, v)
        o, states, moments = f.light_step(x, o_prev, attention, lam, w, **options, moments=True)
        first, _, _ = f.light_step(x, None, attention, lam, w, **options)
        mrla, _, _ = f.light_step(x, o_prev, attention, lam, heads=heads_of(C))
        return (o, *states, first, mrla, moments)

    def recalibrate(f: Any, t: Sequence[Tensor]) -> Outputs:
        a, shortcut, *rest = t
        w, start = pack(*rest[:W]), tuple(rest[W:])
        out, new_state = f.recalibrate(a, w, cell=cell, state=start, shortcut=shortcut, relu=True)
        alone, _ = f.recalibrate(a, w, cell=cell, state=start)
        return (out, *new_state, alone)

    def base_step(f: Any, t: Sequence[Tensor]) -> Outputs:
        stage, out, w = None, [], pack(*t[8:])
        for i in range(2):
            filters = Attention(*t[2 + 3 * i : 5 + 3 * i])
            o, stage, _ = f.base_step(t[i], stage, filters, w, heads=heads_of(C), cell=cell)
            out.append(o)
        return out

    of_one_map = Case("recalibrate", cell, (*maps, *weights, *state), recalibrate)
    if not cell.remembers:
        return [of_one_map]
    return [
        Case("scan", cell, (y, *weights, *state), scan),
        Case("refresh", cell, (y, *weights, *state), refresh),
        Case("layer_update", cell, (*xs, *weights, *state), layer_update),
        Case("light_step", cell, (*maps, *layers[:3], lam, e, *weights, *state), light_step, False),
        Case("base_step", cell, (*maps, *layers, *weights), base_step, False),
        of_one_map,
    ]


def make_plain_cases(sizes: Sequence[tuple[int, int]], B: int, C: int, device: str) -> list[Case]:
    """Return a case for every op without a cell."""
    xs = tuple(torch.randn(B, C, H, W, dtype=torch.float64, device=device) for H, W in sizes)
    d = torch.randn(len(sizes), B, C, dtype=torch.float64, device=device)
    T, x = len(sizes), xs[0]
    q, k, v = random_attention(C, dtype=torch.float64, device=device)
    past = tuple(torch.cat([d] * n) for n in (1, 1, 2))
    gamma, beta, mean, var = (d[0, 0], d[1, 0], d[0, 1], d[1, 1].abs() + 0.5)

    def norm_add(f: Any, t: Sequence[Tensor]) -> Outputs:
        x, o, gamma, beta = t
        exact = accumulate_dtype(x.dtype)
        running = (mean.to(exact), var.to(exact))
        by_batch = {"moments": moments_of(o), "relu": True}
        return f.norm_add(x, o, gamma, beta, running), f.norm_add(x, o, gamma, beta, None, **by_batch)

    return [
        Case("gap", None, xs, lambda f, t: (f.gap(t),)),
        Case("rescale", None, (*xs, d), lambda f, t: f.rescale(t[:-1], t[-1])),
        Case("depthwise", None, (x, v), lambda f, t: f.depthwise(*t)),
        Case("attend", None, (d[0], q, k, *past), lambda f, t: f.attend(*t[:3], t[3:], heads=heads_of(C))),
        Case("mix", None, (*(x * n for n in range(1, T + 1)), d), lambda f, t: f.mix(t[:-1], t[-1], moments=True)),
        Case("norm_add", None, (x, x.flip(0), gamma, beta), norm_add),
    ]


def outputs_and_gradients(case: Case, f: Any, tensors: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Return the op's outputs and the gradients of all tensors for a fixed random direction."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = case.call(f, leaves)
    generator = torch.Generator(out[0].device).manual_seed(seed)
    differentiable = [o for o in out if o.requires_grad]  # moments are constants
    directions = [
        torch.randn(o.shape, dtype=torch.float64, device=o.device, generator=generator).to(o.dtype)
        for o in differentiable
    ]
    return [*out, *torch.autograd.grad(differentiable, leaves, directions)]


def largest_error(got: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Return the largest difference, each tensor measured against its own scale; NaN if there is a NaN."""
    errors = [((g.double() - t).abs().max() / t.abs().max().clamp_min(1e-30)).item() for g, t in zip(got, truth)]
    return float(torch.tensor(errors).max()) if all(e == e for e in errors) else float("nan")


def parity(case: Case, backend: str, dtype: torch.dtype | None = None) -> tuple[float, float]:
    """Return (error, allowed) of outputs, with and without gradients asked for, and of gradients.

    All tensors are converted to ``dtype``; without one, they are as they are, and the first is of the lowest precision.
    """
    tensors = [x.to(dtype or x.dtype) for x in case.tensors]
    dtype = tensors[0].dtype

    def error_of(f: Any, tensors: Sequence[Tensor]) -> float:
        truth = outputs_and_gradients(case, reference, [x.double() for x in tensors])
        with torch.no_grad():
            inferred = case.call(f, tensors)
        got = [*inferred, *outputs_and_gradients(case, f, tensors)]
        return largest_error(got, [*truth[: len(inferred)], *truth])

    error = error_of(functions(backend), tensors)
    if dtype == torch.float64:
        return error, 1e-12

    def allowed(plain: float) -> float:
        return 2 * plain + 4 * torch.finfo(dtype).eps

    plain = error_of(reference, tensors)
    if not error <= allowed(plain):  # one lucky plain run is no yardstick: the worst of several on inputs close by
        nudge = max(1e-3, 2 * torch.finfo(dtype).eps)
        nearby = [[x * (1 + nudge * torch.randn_like(x)) for x in tensors] for _ in range(8)]
        plain = max(plain, *(error_of(reference, near) for near in nearby))
    return error, allowed(plain)


def gradcheck(case: Case, backend: str) -> tuple[float, float]:
    """Compare numerical and analytical gradients: return (0, 0) if they agree, (1, 0) if not."""
    leaves = [x.detach().requires_grad_() for x in case.tensors]
    f = functions(backend)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for out in case.call(f, tensors) if out.requires_grad)

    passed = torch.autograd.gradcheck(call, leaves, raise_exception=False, fast_mode=True)
    if case.twice:
        passed = passed and torch.autograd.gradgradcheck(call, leaves, raise_exception=False, fast_mode=True)
    return float(not passed), 0.0


DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan(backends: Sequence[tuple[str, str]]) -> list[tuple[str, Case, str]]:
    """Return (backend, case, check) for every op and cell; ``backends`` are (name, device)."""
    todo = []
    for backend, device in backends:
        torch.manual_seed(0)
        sizes, small = [(5, 3), (8, 8), (1, 1)], [(2, 3), (1, 1)]
        cases = make_plain_cases(sizes, 5, 33, device)
        tiny = make_plain_cases(small, 2, 3, device)
        for rule in ALL_RULES:
            for projection in RECURRENT:
                cell = replace(rule, projection=projection)
                cases += make_cases(cell, sizes, 5, 33, 9, device)
            tiny += make_cases(rule, small, 2, 3, 2, device)
        for forgetful in (Cell("se"), Cell("eca")):
            cases += make_cases(forgetful, sizes, 5, 33, 9, device)
            tiny += make_cases(forgetful, small, 2, 3, 3, device)
        todo += [(backend, case, check) for case in cases for check in DTYPES]
        todo += [(backend, case, "gradcheck") for case in tiny]
    return todo


def run_check(backend: str, case: Case, check: str) -> Result:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        error, allowed = gradcheck(case, backend) if check == "gradcheck" else parity(case, backend, DTYPES[check])
    cell = "" if case.cell is None else f"{case.cell.rule} {case.cell.projection}"
    return Result(backend, case.op, cell, check, error, allowed)
