"""The light cell, whose gates come of s and h elementwise, a = wy s + wh h + b: all layers of some channels of some
samples, forward and back. No sample and no channel has to do with another."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .cell_call import StateCall
from .checks import check_light
from .recurrence import read_gates, start_h
from .recurrence_bwd import load_c, write_gates
from .sums import sum_samples


class Light(NamedTuple):
    """The weights of a light cell, [NG*C] each."""

    wy: Any
    wh: Any
    b: Any


@triton.jit
def of_channels(w, c, C, NG: tl.constexpr):
    """Return what weights [NG*C] are at channels c, [1, c], of gates i, f, g, o; those that the cell lacks repeat the
    first."""
    return read_gates(w, tl.zeros([1], tl.int32), c, C, (c < C)[None, :], NG)


@triton.jit
def light_gates(wy, wh, b, s, h):
    """Return the gate rows i, f, g, o."""
    return (
        wy[0] * s + wh[0] * h + b[0],
        wy[1] * s + wh[1] * h + b[1],
        wy[2] * s + wh[2] * h + b[2],
        wy[3] * s + wh[3] * h + b[3],
    )


@triton.jit
def light_layers(s, states_h, states_c, h0, c0, w, b, there, c, T, B, C, CELL: tl.constexpr):
    """Run the cell from the state h0, c0 over all T layers of s, for samples b that are there and channels c."""
    A: tl.constexpr = s.dtype.element_ty
    known = there[:, None] & (c < C)[None, :]
    at = b[:, None] * C + c[None, :]
    wy, wh = of_channels(w.wy, c, C, CELL.NG), of_channels(w.wh, c, C, CELL.NG)
    bias = of_channels(w.b, c, C, CELL.NG)
    h = start_h(h0, c0, at, known, A, CELL)
    memory = tl.zeros(known.shape, A) if c0 is None else tl.load(c0 + at, known, 0.0)
    for t in range(0, T):
        here = tl.cast(t, tl.int64) * B * C + at
        a0, a1, a2, a3 = light_gates(wy, wh, bias, tl.load(s + here, known, 0.0), h)
        h, memory = CELL.step(CELL, a0, a1, a2, a3, h, memory)
        if CELL.saves_h:
            tl.store(states_h + here, h, known)
        if CELL.saves_c:
            tl.store(states_c + here, memory, known)


@triton.jit
def h_before(h0, c0, states_h, states_c, t, at, B, C, known, A: tl.constexpr, CELL: tl.constexpr):
    """Return the h that layer t saw."""
    if t > 0:
        h = start_h(states_h, states_c, (tl.cast(t, tl.int64) - 1) * B * C + at, known, A, CELL)
    else:
        h = start_h(h0, c0, at, known, A, CELL)
    return h


@triton.jit
def over_samples(x, known):
    """Return the sums [1, c] over the samples that are there."""
    return tl.sum(tl.where(known, x, 0.0), 0)[None, :]


@triton.jit
def light_layers_bwd(
    s, ds, states_h, states_c, dstates_h, dstates_c, h0, c0, dh0, dc0, parts, w, b, there, c, T, B, C,
    CELL: tl.constexpr,
):  # fmt: skip
    """Go back through all T layers, for samples b that are there and channels c. Fill ds, the gradients dh0 and dc0 of
    the state given, None where there is none, and the program's parts: of wy, wh and b, [NG*C] each."""
    A: tl.constexpr = s.dtype.element_ty
    NG: tl.constexpr = CELL.NG
    known = there[:, None] & (c < C)[None, :]
    at = b[:, None] * C + c[None, :]
    wy, wh, bias = of_channels(w.wy, c, C, NG), of_channels(w.wh, c, C, NG), of_channels(w.b, c, C, NG)
    dh, dc = tl.zeros(known.shape, A), tl.zeros(known.shape, A)
    y0, y1, y2, y3 = dh, dh, dh, dh  # the sums of wy, of wh, of b
    h0_, h1_, h2_, h3_ = dh, dh, dh, dh
    b0, b1, b2, b3 = dh, dh, dh, dh
    for back in range(0, T):
        t = T - 1 - back
        here = tl.cast(t, tl.int64) * B * C + at
        if dstates_h is not None:
            dh += tl.load(dstates_h + here, known, 0.0)
        if dstates_c is not None:
            dc += tl.load(dstates_c + here, known, 0.0)
        now = tl.load(s + here, known, 0.0)
        h = h_before(h0, c0, states_h, states_c, t, at, B, C, known, A, CELL)
        memory = load_c(c0, states_c, t, b, c, B, C, known) if CELL.saves_c else h
        a0, a1, a2, a3 = light_gates(wy, wh, bias, now, h)
        da0, da1, da2, da3, dc = CELL.step_bwd(CELL, a0, a1, a2, a3, h, memory, dh, dc)
        to_s, dh = da0 * wy[0], da0 * wh[0]
        y0, h0_, b0 = y0 + da0 * now, h0_ + da0 * h, b0 + da0
        if NG > 1:
            to_s, dh = to_s + da1 * wy[1], dh + da1 * wh[1]
            y1, h1_, b1 = y1 + da1 * now, h1_ + da1 * h, b1 + da1
        if NG > 2:
            to_s, dh = to_s + da2 * wy[2], dh + da2 * wh[2]
            y2, h2_, b2 = y2 + da2 * now, h2_ + da2 * h, b2 + da2
        if NG > 3:
            to_s, dh = to_s + da3 * wy[3], dh + da3 * wh[3]
            y3, h3_, b3 = y3 + da3 * now, h3_ + da3 * h, b3 + da3
        tl.store(ds + here, to_s, known)
    if dh0 is not None:
        tl.store(dh0 + at, dh, known)
    if dc0 is not None:
        if h0 is None:
            dc += CELL.act.grad(tl.load(c0 + at, known, 0.0), dh)
        tl.store(dc0 + at, dc, known)
    store_part(parts, y0, y1, y2, y3, known, c, C, NG)
    of_wh = parts + NG * C
    store_part(of_wh, h0_, h1_, h2_, h3_, known, c, C, NG)
    of_b = of_wh + NG * C
    store_part(of_b, b0, b1, b2, b3, known, c, C, NG)


@triton.jit
def store_part(to, x0, x1, x2, x3, known, c, C, NG: tl.constexpr):
    """Store sums over the samples of a program in `to` [NG*C], at channels c."""
    first = tl.zeros([1], tl.int32)
    x0, x1 = over_samples(x0, known), over_samples(x1, known)
    x2, x3 = over_samples(x2, known), over_samples(x3, known)
    write_gates(to, first, x0, x1, x2, x3, c, C, (c < C)[None, :], NG)


class LightCall(StateCall):
    """A light cell, of which s is known, and its tensors as kernels take them."""

    projection = "light"

    def __init__(
        self, op: str, rule: str, weights: list[Tensor], state: list[Tensor], T: int, B: int, C: int, like: Tensor,
        R: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(op, rule, state, T, B, C, like, R)
        check_light(weights, self.N, self.dtype, like)
        self.given = [w.contiguous() for w in weights]
        self.weights = Light(*self.given)
        self.dh0 = None if self.h0 is None else self.empty(B, C)
        self.dc0 = None if self.c0 is None else self.empty(B, C)

    def back(self) -> dict[str, Any]:
        """Return what a backward kernel writes of the state and the weights, by the names it has for it."""
        self.parts = self.empty(self.programs, 3 * self.N)
        return {"dh0": self.dh0, "dc0": self.dc0, "parts": self.parts}

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of wy, wh and b, and of the state in the form in which it was given, once the kernel
        has run."""
        dweights = [w.new_empty(w.shape) for w in self.given]
        sum_samples(self.parts, dweights, self.tiles)
        return dweights, [x for x in (self.dh0, self.dc0) if x is not None]
