"""d_t = Dyn(y_t, c_T) for all t at once, output only"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import phases
from .cell_call import CellCall
from .checks import check_rows, check_tensor
from .operator import operator
from .recurrence import hoist, load_start, refresh_layers
from .recurrence_bwd import begin, finish, keep_start, refresh_bwd_layers
from .weight_gradients import WeightGradients, clear


@triton.jit(do_not_specialize=["T", "B"])
def refresh_kernel(
    y,  # [T, B, C]
    h,  # [B, C] the state after the last layer; None where it is act(c)
    c,  # [B, C]; None where the cell has none
    d,  # [T, B, C] written
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
    load_start(s, h, c, B, C, CELL, TILES)
    hoist(y, w, s.p, s.q, s.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    refresh_layers(d, s.h, s.c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "COUNT"])
def refresh_bwd_kernel(
    y,  # [T, B, C]
    h,  # [B, C] the state after the last layer; None where it is act(c)
    c,  # [B, C]; None where the cell has none
    dd,  # [T, B, C]
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
    begin(None, None, h, c, f, 0, B, C, CELL, TILES)
    hoist(y, w, f.p, f.q, f.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    refresh_bwd_layers(dd, None, f.h, c, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    keep_start(h, c, f, B, C, CELL, TILES)
    finish(dy, w, f, T, B, C, R, 0, False, CELL, PROJECTION, TILES, PRECISION)


@operator()
def refresh(y: Tensor, state: list[Tensor], weights: list[Tensor], rule: str) -> Tensor:
    check_rows("y", y)
    y = y.contiguous()
    call = CellCall("refresh", rule, weights, state, *y.shape, y)
    if call.tiles.abreast:
        return phases.forward(call, y, [], scanned=0, refreshed=call.T)
    d = y.new_empty(y.shape)
    call.run(refresh_kernel, y=y, h=call.h0, c=call.c0, d=d, w=call.weights, s=call.scratch())
    return d


@operator()
def refresh_bwd(
    dd: Tensor, y: Tensor, state: list[Tensor], weights: list[Tensor], rule: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_rows("y", y)
    check_tensor("dd", dd, y.shape, y.dtype, y)
    y = y.contiguous()
    call = CellCall("refresh_bwd", rule, weights, state, *y.shape, y)
    dd, f = dd.contiguous(), call.factors()
    gradients = WeightGradients(call, f, y, has_refresh=True, has_scan=False)
    if call.tiles.abreast:
        gradients.clear()
        last = {"h_last": f.h[0], "c_last": call.c0}
        dy = phases.backward(call, f, y, dd, [], [], **last, scanned=0, refreshed=call.T)
        return dy, call.dstate(f), gradients.compute()
    dy = y.new_empty(y.shape)
    call.run(
        refresh_bwd_kernel,
        y=y,
        h=call.h0,
        c=call.c0,
        dd=dd,
        dy=dy,
        w=call.weights,
        f=f,
        **gradients.counters,
    )
    return dy, call.dstate(f), gradients.compute()
