"""Measure layer attention inside a network: a layer of DLA-L, a stage of DLA-B, and the maps autograd holds for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import dla_kernels as dla
from bench.common import MB, Target, holds, interleaved, medians_ms
from bench.devices import Saved
from bench.targets.published import base_stage_by_copying
from dla_kernels import reference
from dla_kernels.attention import filter_width
from dla_kernels.cells import accumulate_dtype
from dla_kernels.terminal import progress, table
from dla_kernels.verify import Case, parity, random_weights

D = 32  # channels per head, as in the published networks
CELL = dla.RELEASED_DSU


class Row(NamedTuple):
    """The map [B, C, HW, HW] that one layer has; a stage has T of them."""

    B: int
    C: int
    HW: int
    T: int = 1
    r: int = 0  # 0 stands for what is published for C

    @property
    def R(self) -> int:
        return max(1, self.C // (self.r or (4 if self.C <= 256 else 16)))

    def __str__(self) -> str:
        return f"{f'T{self.T}-' if self.T > 1 else ''}B{self.B}-C{self.C}-HW{self.HW}x{self.HW}"

    @property
    def S(self) -> int:
        """Return the bytes of one map in fp32."""
        return 4 * self.B * self.C * self.HW**2


LAYERS = (Row(32, 64, 32), Row(32, 128, 16), Row(32, 256, 8), Row(8, 256, 56), Row(8, 512, 28), Row(8, 1024, 14))
STAGE = Row(16, 256, 8, T=12)
DEPTHS = (2, 4, 8, 12, 18, 24, 36)


def attention(C: int) -> dla.Attention:
    K = filter_width(C)
    return dla.Attention(torch.randn(K) * C**-0.25, torch.randn(K) * C**-0.25, torch.randn(C, 1, 3, 3) / 3)


def cell_weights(row: Row) -> dla.Split:
    return dla.Split(*random_weights(CELL, row.C, row.R))


def leaves_of(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in tensors]


class Layer:
    """A DLA-L layer in the middle of a stage, as the published code has it, with the convolution e. Its maps are in
    ``dtype``, all else is in that of the arithmetic."""

    def __init__(self, row: Row, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        torch.manual_seed(0)
        B, C, HW, _, _ = row
        generator = torch.Generator(device).manual_seed(0)
        x, o_prev, self.do = (
            torch.randn(B, C, HW, HW, dtype=dtype, device=device, generator=generator) for _ in range(3)
        )
        lam, e, c = torch.randn(C), torch.randn(C, 1, 3, 3) / 3, torch.randn(B, C)
        small = [w.to(device, accumulate_dtype(dtype)) for w in (*attention(C), lam, e, c, *cell_weights(row))]
        self.heads, self.buffers = max(1, C // D), [torch.zeros_like(x) for _ in range(2)]
        self.tensors = (x, o_prev, *small)
        self.leaves = leaves_of(self.tensors)

    def call(self, light_step: Callable, tensors: list[Tensor] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, o_prev, q, k, v, lam, e, c, *w = tensors
        o, states, _ = light_step(
            x, o_prev, dla.Attention(q, k, v), lam, dla.Split(*w), heads=self.heads, cell=CELL, state=(c,), e=e
        )
        return o, *states

    def forward(self, light_step: Callable) -> None:
        with torch.no_grad():
            self.call(light_step, self.tensors)

    def forward_backward(self, light_step: Callable) -> None:
        o, *_ = self.call(light_step, self.leaves)
        torch.autograd.grad(o, self.leaves, self.do)

    def copy(self) -> None:
        """Copy two maps, which moves four; a forward pass moves three, of which it reads two and writes one."""
        for buffer, x in zip(self.buffers, self.tensors[:2]):
            buffer.copy_(x)


class Stage:
    """A stage that has T layers of DLA-B, their maps in ``dtype``, all else in that of the arithmetic."""

    def __init__(self, row: Row, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        torch.manual_seed(0)
        B, C, HW, T, _ = row
        self.heads, self.T = max(1, C // D), T
        maps = [torch.randn(B, C, HW, HW).to(dtype) for _ in range(T)]
        small = [t for _ in range(T) for t in attention(C)]
        weights = [w.to(accumulate_dtype(dtype)) for w in (*small, *cell_weights(row))]
        self.tensors = tuple(x.to(device) for x in (*maps, *weights))
        self.leaves = leaves_of(self.tensors)
        self.dos = [torch.randn_like(x) for x in self.tensors[:T]]

    def call(self, stage: Callable, tensors: Sequence[Tensor]) -> list[Tensor]:
        T = self.T
        layers = [(tensors[t], dla.Attention(*tensors[T + 3 * t : T + 3 * t + 3])) for t in range(T)]
        return stage(layers, dla.Split(*tensors[4 * T :]), heads=self.heads, cell=CELL)

    def forward(self, stage: Callable) -> list[Tensor]:
        return self.call(stage, self.leaves)

    def forward_backward(self, stage: Callable) -> None:
        torch.autograd.grad(self.forward(stage), self.leaves, self.dos)

    def maps_held(self, stage: Callable) -> int:
        """Return how many maps autograd holds between forward and backward, the layers' own inputs aside."""
        saved = Saved(self.leaves)
        with saved:
            out = self.forward(stage)
        return sum(size >= out[0].nbytes for size in saved.sizes)


def base_stage(layers: list, weights: dla.Split, *, base_step: Callable = dla.base_step, **options: object) -> list:
    """Run layers one after the other; return o of every layer."""
    stage, out = None, []
    for x, filters in layers:
        o, stage, _ = base_step(x, stage, filters, weights, **options)
        out.append(o)
    return out


def layer_parity(layer: Layer, backend: str, samples: int | None = None) -> tuple[float, float]:
    """Return (error, allowed) of light_step on the layer's own inputs, of its first ``samples``."""
    x, o_prev, q, k, v, lam, e, c, *w = layer.tensors
    tensors = (x[:samples], o_prev[:samples], q, k, v, lam, e, c[:samples], *w)

    def call(f: object, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return layer.call(f.light_step, tensors)  # type: ignore[attr-defined]

    return parity(Case("light_step", CELL, tensors, call), backend, x.dtype)


def check_layer(layer: Layer, row: Row) -> None:
    error, allowed = layer_parity(layer, "cpu")
    if not error <= allowed:
        raise SystemExit(f"{row}: light_step is off by {error:.3g}, allowed {allowed:.3g}; not timing a wrong op")


def measure_layer(row: Row, rounds: int, with_compile: bool) -> dict:
    layer = Layer(row)
    check_layer(layer, row)
    peers = {"eager": reference.light_step}
    if with_compile:
        torch._dynamo.reset()
        peers["compile"] = torch.compile(reference.light_step, dynamic=False)
    peers["ours"] = dla.light_step
    named: dict[str, Callable] = {"copy/copy": layer.copy}
    named |= {f"forward/{name}": partial(layer.forward, f) for name, f in peers.items()}
    named |= {f"forward+backward/{name}": partial(layer.forward_backward, f) for name, f in peers.items()}
    seconds = interleaved(named, rounds)
    return {"name": str(row), "S": row.S, "ms": medians_ms(seconds), "seconds": seconds}


def measure_stage(row: Row, rounds: int) -> dict:
    stage = Stage(row)
    ways = {"eager, copying": base_stage_by_copying, "eager": partial(base_stage, base_step=reference.base_step)}
    ways["ours"] = base_stage
    ours, theirs = (torch.stack(stage.forward(f)).detach() for f in (base_stage, base_stage_by_copying))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    named: dict[str, Callable] = {f"forward/{name}": partial(stage.forward, f) for name, f in ways.items()}
    named |= {f"forward+backward/{name}": partial(stage.forward_backward, f) for name, f in ways.items()}
    seconds = interleaved(named, rounds)
    held = {}
    for T in DEPTHS:
        small = Stage(Row(2, 32, 16, T))
        held[T] = {name: small.maps_held(f) for name, f in ways.items()}
    return {"name": str(row), "S": row.T * row.S, "ms": medians_ms(seconds), "seconds": seconds, "held": held}


def measure(rounds: int, with_compile: bool, wanted: str = "") -> dict:
    layers = [row for row in LAYERS if holds(str(row), wanted)]
    return {
        "layers": [measure_layer(row, rounds, with_compile) for row in progress(layers, "light_step")],
        "stages": [measure_stage(STAGE, max(3, rounds // 3))] if holds(str(STAGE), wanted) else [],
    }


def targets(found: dict) -> list[tuple[str, Target]]:
    out = []
    for row in found["layers"]:
        ms = row["ms"]
        for op, limit in (("forward", 2.0), ("forward+backward", 1.5)):
            best = min(ms[f"{op}/{name}"] for name in ("eager", "compile") if f"{op}/{name}" in ms)
            ours = ms[f"{op}/ours"]
            why = f"{ours:.3f} ms, allowed {best / limit:.3f}; 3 maps take a copy {1.5 * ms['copy/copy'] / 2:.3f}"
            out.append((row["name"], Target(f"light_step {op}", best / ours, limit, True, why)))
    for row in found["stages"]:
        ours, theirs = (row["ms"][f"forward+backward/{name}"] for name in ("ours", "eager, copying"))
        why = f"{ours:.2f} ms, allowed {theirs / 3:.2f}"
        out.append((row["name"], Target("base_step forward+backward", theirs / ours, 3.0, True, why)))
        for T, held in row["held"].items():
            why = f"{held['ours']} maps held, copying {held['eager, copying']}"
            out.append((f"T{T}", Target("maps held - T", held["ours"] - int(T), 3, False, why)))
    return out


def report(found: dict) -> str:
    parts = []
    for op in ("forward", "forward+backward") if found["layers"] else ():
        names = [key.partition("/")[2] for key in found["layers"][0]["ms"] if key.startswith(f"{op}/")]
        body = []
        for row in found["layers"]:
            ms = row["ms"]
            best = min(ms[f"{op}/{name}"] for name in names[:-1])
            line = [row["name"], f"{row['S'] / MB:.1f}", *(f"{ms[f'{op}/{name}']:.3f}" for name in names)]
            line += [f"{best / ms[f'{op}/ours']:.2f}x"]
            if op == "forward":
                line += [
                    f"{3 * row['S'] / ms['forward/ours'] / 1e6:.1f}",
                    f"{4 * row['S'] / ms['copy/copy'] / 1e6:.1f}",
                ]
            body.append(line)
        header = ["layer", "map MB", *names, "speedup", *(["GB/s", "copy GB/s"] if op == "forward" else [])]
        parts.append(f"light_step (DLA-L) {op}, ms\n{table(header, body)}")
    for row in found["stages"]:
        names = [key.partition("/")[2] for key in row["ms"] if key.startswith("forward/")]
        body = [[op, *(f"{row['ms'][f'{op}/{name}']:.2f}" for name in names)] for op in ("forward", "forward+backward")]
        parts.append(f"base_step (DLA-B), a stage {row['name']}, ms\n{table([row['name'], *names], body)}")
        body = [[str(T), *(str(held[name]) for name in names)] for T, held in row["held"].items()]
        parts.append(f"maps that autograd holds for a stage of T layers\n{table(['T', *names], body)}")
    return "\n\n".join(parts)
