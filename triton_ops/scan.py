"""c_t = Dyn(y_t, c_{t-1}) for t = 1..T"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import phases
from .cell_call import CellCall
from .checks import check_rows, is_light
from .light_scan import light_scan, light_scan_bwd
from .operator import operator
from .recurrence import hoist, load_start, scan_layers
from .recurrence_bwd import begin, finish, keep_start, scan_bwd_layers
from .weight_gradients import WeightGradients, clear


@triton.jit(do_not_specialize=["T", "B"])
def scan_kernel(
    y,  # [T, B, C]
    states_h,  # [T, B, C] written; None where the cell saves none
    states_c,  # [T, B, C] written; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights
    s,  # recurrence.Scratch
    T,
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    load_start(s, h0, c0, B, C, CELL, TILES)
    hoist(y, w, s.p, s.q, s.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    scan_layers(states_h, states_c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "COUNT"])
def scan_bwd_kernel(
    y,  # [T, B, C]
    states_h,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    states_c,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    dstates_h,  # [T, B, C]; None where no gradient arrives
    dstates_c,  # [T, B, C]; None where no gradient arrives
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    dy,  # [T, B, C] written
    w,  # recurrence.Weights
    f,  # recurrence_bwd.Factors, written
    arrived,  # [COUNT] int32 counters of the weight gradients, cleared; None where there are none
    COUNT,
    T,
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    clear(arrived, COUNT)
    begin(states_h, states_c, h0, c0, f, T, B, C, CELL, TILES)
    hoist(y, w, f.p, f.q, f.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    scan_bwd_layers(dstates_h, dstates_c, states_c, c0, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    keep_start(h0, c0, f, B, C, CELL, TILES)
    finish(dy, w, f, T, B, C, R, 1, False, CELL, PROJECTION, TILES, PRECISION)


@operator()
def scan(y: Tensor, weights: list[Tensor], state: list[Tensor], rule: str) -> list[Tensor]:
    if is_light(weights):
        return light_scan(y, weights, state, rule)
    check_rows("y", y)
    y = y.contiguous()
    call = CellCall("scan", rule, weights, state, *y.shape, y)
    states = call.empty_states()
    forward(call, y, states)
    return states


@operator()
def scan_bwd(
    dstates: list[Tensor], y: Tensor, weights: list[Tensor], state: list[Tensor], states: list[Tensor], rule: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    if is_light(weights):
        return light_scan_bwd(dstates, y, weights, state, states, rule)
    check_rows("y", y)
    y = y.contiguous()
    call = CellCall("scan_bwd", rule, weights, state, *y.shape, y)
    return backward(call, y, call.saved("states", states), call.saved("dstates", dstates))


def forward(call: CellCall, y: Tensor, states: list[Tensor]) -> None:
    """Fill states from the rows of y."""
    if call.tiles.abreast:
        phases.forward(call, y, states, scanned=call.T, refreshed=0)
        return
    call.run(
        scan_kernel,
        y=y,
        **call.tensors(states),
        s=call.scratch(),
    )


def backward(
    call: CellCall, y: Tensor, states: list[Tensor], dstates: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients of y, of the weights and of the state given."""
    f = call.factors()
    gradients = WeightGradients(call, f, y, has_refresh=False, has_scan=True)
    if call.tiles.abreast:
        gradients.clear()
        dy = phases.backward(call, f, y, None, states, dstates, scanned=call.T, refreshed=0)
        return dy, gradients.compute(), call.dstate(f)
    dy = y.new_empty(y.shape)
    call.run(
        scan_bwd_kernel,
        y=y,
        **call.tensors(states, dstates),
        dy=dy,
        f=f,
        **gradients.counters,
    )
    return dy, gradients.compute(), call.dstate(f)
