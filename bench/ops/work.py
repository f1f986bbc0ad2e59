"""The work that is timed of an op: its tensors at one shape, and how to call it. Each op has a file of its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

import bench.ops
import dla_kernels as dla
from bench.common import Shape
from dla_kernels import reference
from dla_kernels.attention import filter_width
from dla_kernels.cells import PROJECTIONS, Cell, accumulate_dtype
from dla_kernels.verify import Case, parity, random_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
PASSES = ("forward", "backward", "both")
CELLS = dict.fromkeys(("scan", "refresh", "layer_update"), dla.PAPER_DSU)
CELLS |= dict.fromkeys(("light_step", "base_step"), dla.RELEASED_DSU)
CELLS["recalibrate"] = Cell("se")
D = 32  # channels per head, as in the published networks


def every_op() -> list[str]:
    """Return the ops that have a file here."""
    return [module.name for module in pkgutil.iter_modules(bench.ops.__path__) if module.name in reference.__all__]


class Work:
    """An op that is called on the tensors of one shape: maps in ``dtype``, all else in the dtype of the arithmetic.

    ``maps`` is how many of the tensors, counted from the first, are maps.
    """

    def __init__(self, op: str, shape: Shape, maps: int, tensors: Sequence[Tensor], call: Callable, cell: Any = None):
        self.op, self.shape, self.maps, self.call = op, shape, maps, call
        self.case = Case(op, cell, tuple(tensors), call)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.case.tensors

    @property
    def S(self) -> int:
        """Return the bytes of its maps; of its rows where it has none."""
        return sum(x.nbytes for x in self.tensors[: self.maps or 1])

    @cached_property
    def leaves(self) -> list[Tensor]:
        return [x.clone().requires_grad_() for x in self.tensors]

    @cached_property
    def directions(self) -> list[Tensor]:
        """Return a gradient for each output that has one."""
        return [torch.randn_like(o) for o in self._differentiable(reference)]

    def _differentiable(self, f: Any) -> list[Tensor]:
        return [o for o in self.call(f, self.leaves) if o is not None and o.requires_grad]

    def forward(self, f: Any) -> None:
        with torch.no_grad():
            self.call(f, self.tensors)

    def both(self, f: Any) -> None:
        with torch.enable_grad():
            torch.autograd.grad(self._differentiable(f), self.leaves, self.directions, allow_unused=True)

    def backward(self, f: Any) -> Callable[[], object]:
        """Return a call of the backward pass by itself, of a forward pass that is kept."""
        with torch.enable_grad():
            out = self._differentiable(f)
        return lambda: torch.autograd.grad(out, self.leaves, self.directions, retain_graph=True, allow_unused=True)

    def run(self, which: str, f: Any) -> Callable[[], object]:
        """Return a call of one of PASSES that takes no arguments."""
        return self.backward(f) if which == "backward" else partial(getattr(self, which), f)

    @cached_property
    def _copied(self) -> list[Tensor]:
        return [torch.zeros_like(x) for x in self.tensors[: self.maps or 1]]

    def copy(self) -> None:
        """Read S bytes and write S bytes, into memory that is there."""
        for to, x in zip(self._copied, self.tensors):
            to.copy_(x)


def work_of(op: str, shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Work:
    torch.manual_seed(0)
    return importlib.import_module(f"bench.ops.{op}").work(shape, dtype, device)


def maps(count: int, shape: Shape, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return random maps [B, C, HW, HW]."""
    # They do not come from the device's default generator, which a CUDA graph that fails leaves unusable.
    generator = torch.Generator(device).manual_seed(count)
    _, B, C, HW, _ = shape
    return [torch.randn(B, C, HW, HW, dtype=dtype, device=device, generator=generator) for _ in range(count)]


def rows(count: int, shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Return random rows [count, B, C], as many as layers have means, gates or states."""
    return torch.randn(count, shape.B, shape.C, dtype=accumulate_dtype(dtype)).to(device)


def cell_weights(cell: Cell, shape: Shape, dtype: torch.dtype, device: str) -> list[Tensor]:
    return [w.to(device) for w in random_weights(cell, shape.C, shape.R, dtype=accumulate_dtype(dtype))]


def pack(cell: Cell, weights: Sequence[Tensor]) -> Any:
    return PROJECTIONS[cell.projection](*weights)


def torch_lstm(weights: dla.Dense) -> torch.nn.LSTM:
    """Return torch's LSTM, cuDNN's on a GPU, of the function that our scan computes with the LSTM cell."""
    C = weights.wy.shape[1]
    lstm = torch.nn.LSTM(C, C).to(weights.wy.device, weights.wy.dtype)
    with torch.no_grad():
        for parameter, w in zip(lstm.parameters(), (weights.wy, weights.wh, weights.by, weights.bh)):
            parameter.copy_(w)
    return lstm


def filters(shape: Shape, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return random q, k and v of a layer."""
    C, K = shape.C, filter_width(shape.C)
    sizes = ((K,), C**-0.25), ((K,), C**-0.25), ((C, 1, 3, 3), 1 / 3)
    return [(torch.randn(size, dtype=accumulate_dtype(dtype)) * scale).to(device) for size, scale in sizes]


def heads(shape: Shape) -> int:
    return max(1, shape.C // D)


def benchmarks(work: Callable[..., Work]) -> Callable:
    """Return a test for pytest-benchmark that times ours beside the eager reference, at the shapes of two suites."""
    import pytest

    from bench.ops.suites import SUITES, shapes_of

    op = work.__module__.removeprefix("bench.ops.")
    shapes = shapes_of(op, SUITES["cifar"] + SUITES["imagenet"])

    @pytest.mark.parametrize("which", PASSES)
    @pytest.mark.parametrize("peer", ("eager", "ours"))
    @pytest.mark.parametrize("shape", shapes, ids=str)
    def test(benchmark: Any, shape: Shape, peer: str, which: str) -> None:
        torch.manual_seed(0)
        timed = work(shape, torch.float32, "cpu")
        if peer == "ours":
            error, allowed = parity(timed.case, "cpu")
            assert error <= allowed, f"{op} is off by {error:.3g}, allowed {allowed:.3g}: not timed"
        benchmark(timed.run(which, {"eager": reference, "ours": dla}[peer]))

    return test
