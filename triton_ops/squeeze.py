"""s = W2 relu(W1 y + b1) + b2, and what follows of it: the light cell's step, or nothing, where se shows sig(s).

One program has a tile of samples, or, where weights are many, all share out each phase, in a launch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cell_call import NoCell
from .cells import GATE
from .checks import check_squeeze, require
from .light import LightCall, light_layers, light_layers_bwd
from .products import INTO, OUT_OF, multiply, own_columns
from .recurrence import samples_of_tile
from .weight_gradients import Gradients, Product, clear


class Squeeze(NamedTuple):
    """The weights of the bottleneck; a bias may be None."""

    w1: Any  # [R, C]
    b1: Any  # [R]
    w2: Any  # [C, R]
    b2: Any  # [C]


@triton.jit
def squeeze_into(y, u, of_y, b, there, C, R, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute u = relu(W1 y + b1) of samples b."""
    multiply(u, b * R, R, y, b * C, C, of_y.w1, C, there, TILES, PRECISION, INTO, RELU=True, bias=of_y.b1)
    tl.debug_barrier()


@triton.jit
def squeeze_out_of(u, s, of_y, b, there, C, R, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute s = W2 u + b2 of samples b."""
    multiply(s, b * C, C, u, b * R, R, of_y.w2, R, there, TILES, PRECISION, OUT_OF, bias=of_y.b2)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "B"])
def squeeze_kernel(
    y,  # [B, C]
    u,  # [B, R] scratch
    s,  # [B, C] written
    of_y,  # Squeeze
    states_h,  # [B, C] written; None where the cell saves none, or there is none
    states_c,  # [B, C] written; None where the cell saves none, or there is none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # light.Light, or None without a cell that remembers
    PHASE: tl.constexpr,  # of this launch, or "all"
    T,  # 1
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "light", or "" where s is what is wanted
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    b, there = samples_of_tile(B, TILES)
    if PHASE == "all" or PHASE == "into":
        squeeze_into(y, u, of_y, b, there, C, R, TILES, PRECISION)
    if PHASE == "all" or PHASE == "out of":
        squeeze_out_of(u, s, of_y, b, there, C, R, TILES, PRECISION)
    if PROJECTION == "light" and (PHASE == "all" or PHASE == "step"):
        begin, end = own_columns(C, TILES.channels)
        for first in range(begin, end, TILES.channels):
            c = first + tl.arange(0, TILES.channels)
            light_layers(s, states_h, states_c, h0, c0, w, b, there, c, T, B, C, CELL)


@triton.jit
def shown_bwd(dd, s, ds, b, there, c, C, CELL: tl.constexpr):
    """Compute the gradient of s, where what is shown is read off it, at channels c."""
    known = there[:, None] & (c < C)[None, :]
    at = b[:, None] * C + c[None, :]
    of_s = tl.load(s + at, known, 0.0)
    _, to_s = CELL.output_grad(CELL, of_s, of_s, tl.load(dd + at, known, 0.0))
    tl.store(ds + at, to_s, known)


@triton.jit(do_not_specialize=["COUNT", "T", "B"])
def squeeze_bwd_kernel(
    y,  # [B, C]
    dy,  # [B, C] written
    dd,  # [B, C] gradient of what is read off s; None of a cell that remembers
    u,  # [B, R] written
    s,  # [B, C] written
    du,  # [B, R] written: before the relu
    ds,  # [B, C] written
    of_y,  # Squeeze
    states_h,  # [B, C] as the forward pass saved it; None where the cell saves none, or there is none
    states_c,  # [B, C] as the forward pass saved it; None where the cell saves none, or there is none
    dstates_h,  # [B, C]; None where no gradient arrives
    dstates_c,  # [B, C]; None where no gradient arrives
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    dh0,  # [B, C] written; None where h0 is
    dc0,  # [B, C] written; None where c0 is
    parts,  # [programs along axis 0, 3 NG*C] written: each one's share in the gradients of w; None without them
    w,  # light.Light, or None without a cell that remembers
    arrived,  # [COUNT] int32 counters of the weight gradients, cleared
    COUNT,
    PHASE: tl.constexpr,  # of this launch; "all", or "back", those from ds on
    T,  # 1
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "light", or "" where what is shown is read off s
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    b, there = samples_of_tile(B, TILES)
    if PHASE == "all" or PHASE == "into":
        clear(arrived, COUNT)
        squeeze_into(y, u, of_y, b, there, C, R, TILES, PRECISION)
    if PHASE == "all" or PHASE == "out of":
        squeeze_out_of(u, s, of_y, b, there, C, R, TILES, PRECISION)
    if PHASE == "all" or PHASE == "step":
        begin, end = own_columns(C, TILES.channels)
        for first in range(begin, end, TILES.channels):
            c = first + tl.arange(0, TILES.channels)
            if PROJECTION == "light":
                own = parts + tl.program_id(0).to(tl.int64) * (3 * CELL.NG * C)
                light_layers_bwd(
                    s, ds, states_h, states_c, dstates_h, dstates_c, h0, c0, dh0, dc0, own, w, b, there, c, T, B, C,
                    CELL,
                )  # fmt: skip
            else:
                shown_bwd(dd, s, ds, b, there, c, C, CELL)
        tl.debug_barrier()
    if PHASE == "all" or PHASE == "back" or PHASE == "to bottleneck":
        multiply(
            du, b * R, R, ds, b * C, C, of_y.w2, R, there, TILES, PRECISION,
            INTO, TRANSPOSED=True, gate=u, gate_rows=b * R,
        )  # fmt: skip
        tl.debug_barrier()
    if PHASE == "all" or PHASE == "back" or PHASE == "to mean":
        multiply(dy, b * C, C, du, b * R, R, of_y.w1, C, there, TILES, PRECISION, OUT_OF, TRANSPOSED=True)


NO_CELL = {"dh0": None, "dc0": None, "parts": None}  # what a backward kernel writes of a cell where there is none


class Gate(NoCell):
    """What is read off s, without a cell that remembers."""

    cell = GATE


class Squeezing:
    """The bottleneck of a call, and the cell that is told s, or none."""

    def __init__(
        self, op: str, rule: str, weights: list[Tensor], of_cell: list[Tensor], state: list[Tensor], like: Tensor
    ) -> None:
        require(len(weights) > 0, "weights: expected w1, b1, w2 and b2, or fewer biases, got none")
        biased = len(weights) > 1 and weights[1].dim() == 1
        w1, b1, *others = weights if biased else [*weights[:1], None, *weights[1:]]
        w2, b2 = (*others, None)[:2] if others else (None, None)
        B, C = like.shape[:2]
        R = check_squeeze(w1, b1, w2, b2, len(weights), C, like)
        self.weights = Squeeze(*(x if x is None else x.contiguous() for x in (w1, b1, w2, b2)))
        self.remembers = LightCall(op, rule, of_cell, state, 1, B, C, like, R) if of_cell else None
        self.call = self.remembers or Gate(op, 1, B, C, like, R)
        self.u, self.made = self.call.empty(B, R), self.call.empty(B, C)

    def run(self, kernel: Any, phases: tuple[str, ...], together: str = "all", **args: Any) -> None:
        """Launch these phases, as one where a program has its samples to itself."""
        call = self.call
        given = {"u": self.u, "s": self.made, "of_y": self.weights, **args}
        if not call.tiles.abreast:
            call.run(kernel, PHASE=together, **given)
            return
        for phase in phases:
            width = call.R if phase in ("into", "to bottleneck") else call.C
            of_tile = call.tiles.channels if phase == "step" else call.tiles.product[0]
            call.run(kernel, PHASE=phase, shares=(triton.cdiv(width, of_tile),), **given)

    def forward(self, y: Tensor, states: Sequence[Tensor] = ()) -> None:
        """Fill s, which is what is made of y, and states where the cell has them."""
        phases = ("into", "out of", "step") if self.remembers else ("into", "out of")
        self.run(squeeze_kernel, phases, y=y, **self.call.tensors(states))

    def backward(
        self, y: Tensor, dd: Tensor | None, states: list[Tensor], dstates: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the gradients of y, of the weights that there are and of the state, from dd of what is shown, or from
        those of the states; and fill s again."""
        light = self.remembers.back() if self.remembers else NO_CELL
        phases = ("into", "out of", "step", "to bottleneck", "to mean")
        ds, args = self.call.empty(self.call.B, self.call.C), self.call.tensors(states, dstates)
        dy, dweights = self._backward(phases, "all", y, ds, dd=dd, **args, **light)
        of_cell, dstate = self.remembers.gradients() if self.remembers else ([], [])
        return dy, dweights + of_cell, dstate

    def back(self, y: Tensor, ds: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of y and of the weights from ds, once forward has filled s."""
        return self._backward(
            ("to bottleneck", "to mean"), "back", y, ds, dd=None, **self.call.tensors([], []), **NO_CELL
        )

    def _backward(
        self, phases: tuple[str, ...], together: str, y: Tensor, ds: Tensor, **args: Any
    ) -> tuple[Tensor, list[Tensor]]:
        call, given = self.call, self.weights
        du, dy = call.empty(call.B, call.R), call.empty(call.B, call.C)
        grads = Squeeze(*(None if w is None else torch.empty_like(w) for w in given))
        products = [Product(grads.w1, grads.b1, du, y), Product(grads.w2, grads.b2, ds, self.u)]
        gradients = Gradients(call.tiles, y, [x for x in grads if x is not None], products)
        if "into" not in phases:
            gradients.clear()
        self.run(squeeze_bwd_kernel, phases, together, y=y, dy=dy, du=du, ds=ds, **args, **gradients.counters)
        return dy, gradients.compute()
