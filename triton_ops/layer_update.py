"""One stage of dynamic layer attention: pool, scan, refresh and rescale, for a tile of samples in one program."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cell_call import CellCall
from .checks import IN_PLACE, check_in_place, check_like_maps, check_maps, check_tensor
from .maps import ELEMENT, MapList, gate_gradient, pool, scale, table
from .operator import operator
from .recurrence import hoist, load_start, refresh_layers, scan_layers
from .recurrence_bwd import begin, finish, keep_start, refresh_bwd_layers, scan_bwd_layers
from .weight_gradients import WeightGradients, clear


@triton.jit(do_not_specialize=["T", "B"])
def layer_update_kernel(
    table,  # maps.Table of x and out [B, C, H, W]; out is written, and may be x
    y,  # [T, B, C] written
    d,  # [T, B, C] scratch
    states_h,  # [T, B, C] written; None where the cell saves none
    states_c,  # [T, B, C] written; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights
    s,  # recurrence.Scratch
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    T,
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    first = tl.program_id(0) * TILES.samples
    end = tl.minimum(first + TILES.samples, B)
    for t in range(0, T):
        for b in range(first, end):
            pool(table, y, t, b, B, C, 0, C, ELEMENT, PIECE, TILES)
    load_start(s, h0, c0, B, C, CELL, TILES)
    hoist(y, w, s.p, s.q, s.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    scan_layers(states_h, states_c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    h_last = s.h + tl.cast(T % 2, tl.int64) * B * C
    refresh_layers(d, h_last, s.c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    for back in range(0, T):  # the layers read last are nearest
        for b in range(first, end):
            scale(table, 1, d, None, T - 1 - back, b, B, C, 0, C, ELEMENT, PIECE, TILES)


@triton.jit(do_not_specialize=["T", "B", "COUNT"])
def layer_update_bwd_kernel(
    table,  # maps.Table of dout, x and dx [B, C, H, W]; dx is written
    y,  # [T, B, C]
    d,  # [T, B, C] scratch, as dd and dy
    dd,  # [T, B, C]
    dy,  # [T, B, C]
    states_h,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    states_c,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    dstates_h,  # [T, B, C]; None where no gradient arrives
    dstates_c,  # [T, B, C]; None where no gradient arrives
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights
    f,  # recurrence_bwd.Factors, written
    arrived,  # [COUNT] int32 counters of the weight gradients, cleared; None where there are none
    COUNT,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
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
    first = tl.program_id(0) * TILES.samples
    end = tl.minimum(first + TILES.samples, B)
    for t in range(0, T):
        for b in range(first, end):
            gate_gradient(table, dd, t, b, B, C, 0, C, ELEMENT, PIECE, TILES)
    begin(states_h, states_c, h0, c0, f, T, B, C, CELL, TILES)
    hoist(y, w, f.p, f.q, f.uy, T, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
    layer = tl.cast(T, tl.int64) * B * C
    c_last = states_c if states_c is None else states_c + layer - B * C
    refresh_bwd_layers(dd, d, f.h + layer, c_last, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    scan_bwd_layers(dstates_h, dstates_c, states_c, c0, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    keep_start(h0, c0, f, B, C, CELL, TILES)
    finish(dy, w, f, T, B, C, R, 0, True, CELL, PROJECTION, TILES, PRECISION)
    for back in range(0, T):
        for b in range(first, end):
            scale(table, 2, d, dy, T - 1 - back, b, B, C, 0, C, ELEMENT, PIECE, TILES)


def _call_of(op: str, x: MapList, weights: list[Tensor], state: list[Tensor], rule: str) -> CellCall:
    """Return the recurrence over these maps, each of them a layer."""
    like = x.held[0]
    B, C = like.shape[:2]
    return CellCall(op, rule, weights, state, len(x.held), B, C, like, x.largest_plane())


def _forward(x: MapList, out: MapList, states: list[Tensor], call: CellCall) -> Tensor:
    """Fill out and states, and return y."""
    given, piece = table(x, out)
    y, d = call.rows(call.C), call.rows(call.C)
    call.run(
        layer_update_kernel,
        table=given,
        y=y,
        d=d,
        states_h=call.h_of(states),
        states_c=call.c_of(states),
        h0=call.h0,
        c0=call.c0,
        w=call.weights,
        s=call.scratch(),
        ELEMENT=ELEMENT[call.like.dtype],
        PIECE=piece,
    )
    return y


@operator()
def layer_update(
    xs: list[Tensor], weights: list[Tensor], state: list[Tensor], rule: str
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    check_maps(xs)
    x = MapList(xs)
    call = _call_of("layer_update", x, weights, state, rule)
    out, states = x.empty_like(), call.empty_states()
    y = _forward(x, out, states, call)
    return out.as_given(x), states, y


@operator(writes=("xs", "states"))
def layer_update_(
    xs: list[Tensor], states: list[Tensor], weights: list[Tensor], state: list[Tensor], rule: str
) -> None:
    check_maps(xs)
    x = MapList(xs)
    check_in_place(x.held, xs, IN_PLACE)
    call = _call_of("layer_update", x, weights, state, rule)
    check_in_place(call.saved("states", states), states, "states: expected contiguous tensors")
    _forward(x, x, states, call)


@operator()
def layer_update_bwd(
    dout: list[Tensor],
    dstates: list[Tensor],
    xs: list[Tensor],
    weights: list[Tensor],
    state: list[Tensor],
    y: Tensor,
    states: list[Tensor],
    rule: str,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    check_maps(xs)
    check_like_maps("dout", dout, xs)
    x = MapList(xs)
    call = _call_of("layer_update_bwd", x, weights, state, rule)
    check_tensor("y", y, (call.T, call.B, call.C), call.dtype, call.like)
    dx = x.empty_like()
    grads = MapList(dout, x)  # held until the launch: a table knows addresses only
    given, piece = table(grads, x, dx)
    states, dstates = call.saved("states", states), call.saved("dstates", dstates, may_be_absent=True)
    y, f = y.contiguous(), call.factors()
    gradients = WeightGradients(call, f, y, has_refresh=True, has_scan=True)
    d, dd, dy = (call.rows(call.C) for _ in range(3))
    call.run(
        layer_update_bwd_kernel,
        table=given,
        y=y,
        d=d,
        dd=dd,
        dy=dy,
        states_h=call.h_of(states),
        states_c=call.c_of(states),
        dstates_h=call.h_of(dstates),
        dstates_c=call.c_of(dstates),
        h0=call.h0,
        c0=call.c0,
        w=call.weights,
        f=f,
        **gradients.counters,
        ELEMENT=ELEMENT[call.like.dtype],
        PIECE=piece,
    )
    return dx.as_given(x), gradients.compute(), call.dstate(f)
