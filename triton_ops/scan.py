"""c_t = Dyn(y_t, c_{t-1}) for t = 1..T"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_rows
from .launch import Recurrence
from .operator import operator
from .recurrence import hoist, load_start, scan_layers
from .recurrence_bwd import begin, finish, keep_start, scan_bwd_layers
from .weight_gradients import WeightGradients, clear


@triton.jit(do_not_specialize=["T", "B"])
def scan_kernel(
    y, states_h, states_c, h0, c0, w, s, T, B, C, R,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    load_start(s, h0, c0, B, C, CELL, TILES)
    hoist(y, w, s.p, s.q, s.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    scan_layers(states_h, states_c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "COUNT"])
def scan_bwd_kernel(
    y, states_h, states_c, dstates_h, dstates_c, h0, c0, dy, w, f, arrived, COUNT, T, B, C, R,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    clear(arrived, COUNT)
    begin(states_h, states_c, h0, c0, f, T, B, C, CELL, TILES)
    hoist(y, w, f.p, f.q, f.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    scan_bwd_layers(dstates_h, dstates_c, states_c, c0, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    keep_start(h0, c0, f, B, C, CELL, TILES)
    finish(dy, w, f, T, B, C, R, 1, False, CELL, PROJECTION, TILES, PRECISION)


@operator()
def scan(y: Tensor, weights: list[Tensor], state: list[Tensor], rule: str) -> list[Tensor]:
    check_rows("y", y)
    y = y.contiguous()
    r = Recurrence("scan", rule, weights, state, *y.shape, y)
    states = r.empty_states()
    r.run(scan_kernel, y, r.h_of(states), r.c_of(states), r.h0, r.c0, r.weights, r.scratch())
    return states


@operator()
def scan_bwd(
    dstates: list[Tensor], y: Tensor, weights: list[Tensor], state: list[Tensor], states: list[Tensor], rule: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_rows("y", y)
    y = y.contiguous()
    r = Recurrence("scan_bwd", rule, weights, state, *y.shape, y)
    states, dstates = r.saved("states", states), r.saved("dstates", dstates)
    f, dy = r.factors(), y.new_empty(y.shape)
    gradients = WeightGradients(r, f, y, has_refresh=False, has_scan=True)
    r.run(
        scan_bwd_kernel, y, r.h_of(states), r.c_of(states), r.h_of(dstates), r.c_of(dstates), r.h0, r.c0, dy,
        r.weights, f, *gradients.arrived,
    )  # fmt: skip
    return dy, gradients.compute(), r.dstate(f)
