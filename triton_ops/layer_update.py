"""One stage of dynamic layer attention, in launches that fill the chip: the maps are pooled by programs that share them
out; the cell runs over tiles of samples, whose layers wait for each other; and again all programs rescale maps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import phases
from .cell_call import CellCall
from .checks import IN_PLACE, check_in_place, check_like_maps, check_maps, check_tensor
from .gap import means
from .maps import MapList
from .operator import operator
from .recurrence import hoist, load_start, refresh_layers, scan_layers
from .recurrence_bwd import begin, finish, keep_start, refresh_bwd_layers, scan_bwd_layers
from .rescale import gate_gradients, scale_maps
from .weight_gradients import WeightGradients, clear


@triton.jit(do_not_specialize=["T", "B"])
def layer_update_kernel(
    y,  # [T, B, C]
    d,  # [T, B, C] written
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
    h_last = s.h + tl.cast(T % 2, tl.int64) * B * C
    refresh_layers(d, h_last, s.c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "COUNT"])
def layer_update_bwd_kernel(
    y,  # [T, B, C]
    d,  # [T, B, C] written
    dd,  # [T, B, C]
    dy,  # [T, B, C] written
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
    layer = tl.cast(T, tl.int64) * B * C
    c_last = states_c if states_c is None else states_c + layer - B * C
    refresh_bwd_layers(dd, d, f.h + layer, c_last, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    scan_bwd_layers(dstates_h, dstates_c, states_c, c0, w, f, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    keep_start(h0, c0, f, B, C, CELL, TILES)
    finish(dy, w, f, T, B, C, R, 0, True, CELL, PROJECTION, TILES, PRECISION)


def _call_of(op: str, x: MapList, weights: list[Tensor], state: list[Tensor], rule: str) -> CellCall:
    """Return the recurrence over these maps, each of them a layer."""
    like = x.held[0]
    return CellCall(op, rule, weights, state, len(x.held), *like.shape[:2], like)


def _forward(x: MapList, out: MapList, states: list[Tensor], call: CellCall) -> Tensor:
    """Fill out and states, and return y."""
    y = means(x)
    if call.tiles.abreast:
        d = phases.forward(call, y, states, scanned=call.T, refreshed=call.T)
    else:
        d = call.rows(call.C)
        call.run(
            layer_update_kernel,
            y=y,
            d=d,
            **call.tensors(states),
            s=call.scratch(),
        )
    scale_maps(x, out, d)
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
    states, dstates = call.saved("states", states), call.saved("dstates", dstates, may_be_absent=True)
    y, f = y.contiguous(), call.factors()
    gradients = WeightGradients(call, f, y, has_refresh=True, has_scan=True)
    grads, dx = MapList(dout, x), x.empty_like()
    d, dd = call.rows(call.C), gate_gradients(grads, x)
    if call.tiles.abreast:
        gradients.clear()
        c = call.c_of(states)
        last = {"h_last": f.h[-1], "c_last": None if c is None else c[-1]}
        dy = phases.backward(call, f, y, dd, states, dstates, **last, d=d, scanned=call.T, refreshed=call.T)
    else:
        dy = call.rows(call.C)
        call.run(
            layer_update_bwd_kernel,
            y=y,
            d=d,
            dd=dd,
            dy=dy,
            **call.tensors(states, dstates),
            f=f,
            **gradients.counters,
        )
    scale_maps(grads, dx, d, dy)
    return dx.as_given(x), gradients.compute(), call.dstate(f)
