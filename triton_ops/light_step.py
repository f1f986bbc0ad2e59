"""One layer of light attention, for a tile of samples in one program:

    o = gate dwconv(x; v) + lam (d o_prev + dwconv(o_prev; e))

Both maps are pooled, the cell runs a step from the mean of x, its refresh of the mean of o_prev is d, and the filters
of the sample, gate v on x and lam (e + d in the middle) on o_prev, pass over both maps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cell_call import CellCall, NoCell, from_row
from .checks import check_filters, check_light_maps, check_like_maps, check_tensor, require
from .heads import channel_gates, channel_gates_bwd
from .maps import ELEMENT, MapList, map_of, pixels_of, pool, row_of, table, tile_of
from .moments import Moments, observe, store_plane
from .operator import operator
from .recurrence import hoist, load_start, refresh_layers, scan_layers
from .recurrence_bwd import begin, finish, keep_start, refresh_bwd_layers, scan_bwd_layers
from .stencil import MIDDLE, convolve, convolved, correlate, taps_of
from .sums import sum_samples
from .weight_gradients import NO_COUNTERS, WeightGradients, clear


class Filters(NamedTuple):
    """The filters of a layer, which all samples share."""

    q: Any  # [K]
    k: Any  # [K]
    v: Any  # [C, 9]
    lam: Any  # [C]
    e: Any  # [C, 9], or None


class Work(NamedTuple):
    """What the backward pass writes for itself, of each sample; None where there is no use for it."""

    gate: Any  # [B, C]
    d: Any  # [B, C]
    dgate: Any  # [B, C]
    dd: Any  # [B, C]
    dq_row: Any  # [B, C], gradients of queries and keys
    dk_row: Any  # [B, C]
    on_x: Any  # [B, C, 9], the gradients of the sample's filters
    on_o: Any  # [B, C, 9]
    parts: Any  # [B, P], its share of the gradient of all Filters, one after the other


# ---- forward ----


@triton.jit
def taps_on_x(f, gate, row, c, C, FLIPPED: tl.constexpr):
    """Return the taps on x of the sample whose row this is: gate v."""
    return taps_of(f.v, tl.load(gate + row + c, c < C, 0.0), 0.0, c, C, FLIPPED)


@triton.jit
def taps_on_o(f, d, row, c, C, FLIPPED: tl.constexpr):
    """Return the taps on o_prev of the sample whose row this is: lam (e + d in the middle), with
    d = 1 where there is none."""
    middle = 1.0 if d is None else tl.load(d + row + c, c < C, 0.0)
    return taps_of(f.e, tl.load(f.lam + c, c < C, 0.0), middle, c, C, FLIPPED)


@triton.jit
def attend(
    table, W, f, gate, d, planes, b, B, C,
    ELEMENT: tl.constexpr, PIECE: tl.constexpr, INTERLEAVED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Compute o of sample b from its gates; planes is for the moments, where they are wanted."""
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    BEFORE: tl.constexpr = len(table.planes) > 1
    A: tl.constexpr = gate.dtype.element_ty
    HW = pixels_of(table, PIECE, INTERLEAVED)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    o, o_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    if BEFORE:
        before, before_stride = map_of(table.maps[0], 1, b, ELEMENT, PIECE)
    row = row_of(0, b, B, C)
    for c0 in range(0, C, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        on_x = taps_on_x(f, gate, row, c, C, False)
        if BEFORE:
            on_o = taps_on_o(f, d, row, c, C, False)
        mean, m2 = tl.zeros([CHANNELS, PIXELS], A), tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            sums = convolved(x, x_stride, None, on_x, c, p, C, W, HW, INTERLEAVED)
            if BEFORE:
                sums += convolved(before, before_stride, None, on_o, c, p, C, W, HW, INTERLEAVED)
            new = sums.to(ELEMENT)
            tl.store(tile_of(o, o_stride, c, p, INTERLEAVED), new, there)
            if planes is not None:
                mean, m2 = observe(mean, m2, new.to(A), there, p0 // PIXELS + 1)
        if planes is not None:
            store_plane(planes, mean, m2, c, b, B, C, HW)


@triton.jit(do_not_specialize=["W", "K", "HEADS", "T", "B"])
def light_step_kernel(
    table,  # maps.Table: first x, and o_prev where there is one, then o, written; all [B, C, H, W]
    W,
    f,  # Filters
    K,  # taps of f.q and f.k
    HEADS,
    SCALE: tl.constexpr,  # 1 / sqrt(D)
    y,  # [MAPS, B, C] the means of x and of o_prev; written
    gate,  # [B, C] scratch
    d,  # [B, C] scratch; None without a cell, or without o_prev
    planes,  # [2, B, C] written, for the moments; None where they are not wanted
    states_h,  # [B, C] written; None where the cell saves none
    states_c,  # [B, C] written; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights; None without a cell
    s,  # recurrence.Scratch, of the scan of the one layer x; None without a cell
    of_refresh,  # the same, from the rows of o_prev on
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    T,  # 1: x is the one layer of its scan, o_prev of its refresh
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell, or None
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"; "" without a cell
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    MAPS: tl.constexpr = len(table.planes)
    first = tl.program_id(0) * TILES.samples
    end = tl.minimum(first + TILES.samples, B)
    for m in range(0, MAPS):
        for b in range(first, end):
            pool(table, y, m, b, B, C, 0, C, ELEMENT, PIECE, TILES)
    tl.debug_barrier()
    for b in range(first, end):
        row = row_of(0, b, B, C)
        channel_gates(gate + row, y + row, f.q, f.k, K, HEADS, C, SCALE, TILES)
    if CELL is not None:
        load_start(s, h0, c0, B, C, CELL, TILES)
        hoist(y, w, s.p, s.q, s.uy, MAPS, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
        scan_layers(states_h, states_c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
        if MAPS > 1:
            h_last = s.h + row_of(1, 0, B, C)
            refresh_layers(d, h_last, s.c, w, of_refresh, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
    tl.debug_barrier()
    for b in range(first, end):
        attend(table, W, f, gate, d, planes, b, B, C, ELEMENT, PIECE, INTERLEAVED, TILES)


# ---- backward ----


@triton.jit
def tap_sums(
    table, W, f, on_x, on_o, b, B, C,
    ELEMENT: tl.constexpr, PIECE: tl.constexpr, INTERLEAVED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the filters of sample b; of that on o_prev the middle tap alone, if there is no e."""
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    FIRST: tl.constexpr = MIDDLE if f.e is None else 0
    END: tl.constexpr = MIDDLE + 1 if f.e is None else 9
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    on_x += row_of(0, b, B, C) * 9
    for c0 in range(0, C, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        correlate(on_x, dout, dout_stride, None, x, x_stride, c, C, W, HW, 0, 9, INTERLEAVED, TILE[1])
        if on_o is not None:
            before, stride = map_of(table.maps[0], 1, b, ELEMENT, PIECE)
            to = on_o + row_of(0, b, B, C) * 9
            correlate(to, dout, dout_stride, None, before, stride, c, C, W, HW, FIRST, END, INTERLEAVED, TILE[1])


@triton.jit
def refresh_gradient(dd, on_o, lam, b, B, C, TILES: tl.constexpr):
    """Read dd of sample b off the gradient of its filter on o_prev: d sits in the middle tap."""
    row = row_of(0, b, B, C)
    for c0 in range(0, C, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        middle = tl.load(on_o + row * 9 + c * 9 + MIDDLE, c < C, 0.0)
        tl.store(dd + row + c, middle * tl.load(lam + c, c < C, 0.0), c < C)


@triton.jit
def parts_of(parts, P, K, b, C):
    """Return where the share of sample b in parts [B, P] begins: its dq, dk, dv, dlam and de."""
    dq = parts + tl.cast(b, tl.int64) * P
    dk = dq + K
    dv = dq + 2 * K
    dlam = dv + 9 * C
    de = dlam + C
    return dq, dk, dv, dlam, de


@triton.jit
def filter_gradients(f, work, P, K, b, B, C, TILES: tl.constexpr):
    """Fill the share of sample b in dv, dlam and de, and its dgate, from the gradients of its filters."""
    TAPS: tl.constexpr = 16
    row = row_of(0, b, B, C)
    _, _, dv, dlam, de = parts_of(work.parts, P, K, b, C)
    k = tl.arange(0, TAPS)
    for c0 in range(0, C, TILES.step_columns):
        c = c0 + tl.arange(0, TILES.step_columns)
        nine = c[:, None] * 9 + k[None, :]
        known = (c < C)[:, None] & (k < 9)[None, :]
        on_x = tl.load(work.on_x + row * 9 + nine, known, 0.0)
        gate = tl.load(work.gate + row + c, c < C, 0.0)
        tl.store(work.dgate + row + c, tl.sum(on_x * tl.load(f.v + nine, known, 0.0), 1), c < C)
        tl.store(dv + nine, gate[:, None] * on_x, known)
        if work.on_o is not None:
            of_lam = tl.load(work.on_o + row * 9 + c * 9 + MIDDLE, c < C, 0.0)
            if work.d is not None:
                of_lam *= tl.load(work.d + row + c, c < C, 0.0)
            if f.e is not None:
                on_o = tl.load(work.on_o + row * 9 + nine, known, 0.0)
                of_lam += tl.sum(on_o * tl.load(f.e + nine, known, 0.0), 1)
                tl.store(de + nine, tl.load(f.lam + c, c < C, 0.0)[:, None] * on_o, known)
            tl.store(dlam + c, of_lam, c < C)


@triton.jit
def send_back(
    table, W, f, gate, d, dy, b, B, C,
    ELEMENT: tl.constexpr, PIECE: tl.constexpr, INTERLEAVED: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the maps of sample b; dy [MAPS, B, C] is that of their means, of o_prev and then of
    x."""
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    MAPS: tl.constexpr = len(table.planes)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    dx, stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    row = row_of(0, b, B, C)
    for c0 in range(0, C, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        taps = taps_on_x(f, gate, row, c, C, True)
        shift = tl.load(dy + row_of(MAPS - 1, b, B, C) + c, c < C, 0.0) / HW
        convolve(dout, dout_stride, None, dx, stride, shift, taps, c, C, W, HW, INTERLEAVED, TILE[1])
        if MAPS > 1:
            dbefore, stride_before = map_of(table.maps[2], 1, b, ELEMENT, PIECE)
            taps = taps_on_o(f, d, row, c, C, True)
            shift = tl.load(dy + row + c, c < C, 0.0) / HW
            convolve(dout, dout_stride, None, dbefore, stride_before, shift, taps, c, C, W, HW, INTERLEAVED, TILE[1])


@triton.jit(do_not_specialize=["W", "K", "HEADS", "P", "COUNT", "T", "B"])
def light_step_bwd_kernel(
    table,  # maps.Table: x and perhaps o_prev, then dout, then their gradients, written; all [B, C, H, W]
    W,
    f,  # Filters
    K,  # taps of f.q and f.k
    HEADS,
    SCALE: tl.constexpr,  # 1 / sqrt(D)
    y,  # [MAPS, B, C] the means in the order of the factors, the refresh's before the scan's: of o_prev, of x
    dy,  # [MAPS, B, C] scratch, in that order; zeros without a cell
    work,  # Work
    P,  # numbers that all filters have
    states_h,  # [1, B, C] as the forward pass saved it; None where the cell saves none
    states_c,  # [1, B, C] as the forward pass saved it; None where the cell saves none
    dstates_h,  # [1, B, C]; None where no gradient arrives
    dstates_c,  # [1, B, C]; None where no gradient arrives
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights; None without a cell
    factors,  # recurrence_bwd.Factors, written; None without a cell
    of_scan,  # the same, from the rows of x on
    arrived,  # [COUNT] int32 counters of the weight gradients, cleared; None where there are none
    COUNT,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    T,  # 1: x is the one layer of its scan, o_prev of its refresh
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell, or None
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"; "" without a cell
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    MAPS: tl.constexpr = len(table.planes)
    first = tl.program_id(0) * TILES.samples
    end = tl.minimum(first + TILES.samples, B)
    of_x = row_of(MAPS - 1, 0, B, C)
    for b in range(first, end):
        row = row_of(0, b, B, C)
        channel_gates(work.gate + row, y + of_x + row, f.q, f.k, K, HEADS, C, SCALE, TILES)
        tap_sums(table, W, f, work.on_x, work.on_o, b, B, C, ELEMENT, PIECE, INTERLEAVED, TILES)
    tl.debug_barrier()
    if CELL is not None:
        clear(arrived, COUNT)
        begin(states_h, states_c, h0, c0, factors, T, B, C, CELL, TILES)
        hoist(
            y, w, factors.p, factors.q, factors.uy, MAPS, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION
        )  # fmt: skip
        if MAPS > 1:
            for b in range(first, end):
                refresh_gradient(work.dd, work.on_o, f.lam, b, B, C, TILES)
            tl.debug_barrier()
            h_last = factors.h + row_of(1, 0, B, C)
            refresh_bwd_layers(
                work.dd, work.d, h_last, states_c, w, factors, T, B, C, R, CELL, PROJECTION, TILES, PRECISION
            )  # fmt: skip
        scan_bwd_layers(
            dstates_h, dstates_c, states_c, c0, w, of_scan, T, B, C, R, CELL, PROJECTION, TILES, PRECISION
        )  # fmt: skip
        keep_start(h0, c0, factors, B, C, CELL, TILES)
        finish(dy, w, factors, MAPS, B, C, R, 2 - MAPS, False, CELL, PROJECTION, TILES, PRECISION)
    for b in range(first, end):
        filter_gradients(f, work, P, K, b, B, C, TILES)
    tl.debug_barrier()
    for b in range(first, end):
        row = row_of(0, b, B, C)
        dq, dk, _, _, _ = parts_of(work.parts, P, K, b, C)
        channel_gates_bwd(
            dy + of_x + row, dq, dk, work.dq_row + row, work.dk_row + row, work.dgate + row, work.gate + row,
            y + of_x + row, f.q, f.k, K, HEADS, C, SCALE, TILES,
        )  # fmt: skip
        send_back(table, W, f, work.gate, work.d, dy, b, B, C, ELEMENT, PIECE, INTERLEAVED, TILES)


# ---- launches ----


class Step:
    """What both directions check and prepare: the maps, the recurrence, and what every kernel is told of the
    filters."""

    def __init__(
        self, op: str, maps: list[Tensor], filters: list[Tensor], weights: list[Tensor], state: list[Tensor],
        rule: str, heads: int,
    ) -> None:  # fmt: skip
        check_light_maps(maps)
        self.like = maps[0]
        B, C, H, W = self.like.shape
        self.x = MapList(maps[:1])
        self.maps = MapList(maps, self.x)
        self.call: NoCell
        if rule or weights:
            self.call = CellCall(op, rule, weights, state, 1, B, C, self.like, H * W, len(maps))
        else:
            require(not state, "state: expected none without a cell")
            self.call = NoCell(op, 1, B, C, self.like, H * W)
        check_filters(filters, C, self.call.dtype, self.like)
        require(heads > 0 and C % heads == 0, f"heads: expected a divisor of {C} channels, got {heads}")
        self.filters = [f.contiguous() for f in filters]
        e = self.filters[4] if len(filters) == 5 and len(maps) == 2 else None
        # What every kernel is told of them.
        self.given = {
            "W": W,
            "f": Filters(*self.filters[:4], e),
            "K": filters[0].numel(),
            "HEADS": heads,
            "SCALE": (C // heads) ** -0.5,
        }

    def refreshed(self) -> Tensor | None:
        """Return room for d, None where there is none."""
        return self.call.empty(self.call.B, self.call.C) if self.call.cell and len(self.maps.held) > 1 else None


@operator()
def light_step(
    maps: list[Tensor], filters: list[Tensor], weights: list[Tensor], state: list[Tensor], rule: str, heads: int,
    moments: bool,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:  # fmt: skip
    step = Step("light_step", maps, filters, weights, state, rule, heads)
    call = step.call
    o = step.x.empty_like()
    given, piece = table(step.maps, o)
    y, gate = call.empty(len(maps), call.B, call.C), call.empty(call.B, call.C)
    of_o = Moments(step.like, moments, y)
    states: list[Tensor] = []
    scratch = of_refresh = None
    if isinstance(call, CellCall):
        states, scratch = [s[0] for s in call.empty_states()], call.scratch()
        of_refresh = from_row(scratch, len(maps) - 1)
    call.run(
        light_step_kernel,
        table=given,
        **step.given,
        y=y,
        gate=gate,
        d=step.refreshed(),
        planes=of_o.planes,
        states_h=call.h_of(states),
        states_c=call.c_of(states),
        h0=call.h0,
        c0=call.c0,
        w=call.weights,
        s=scratch,
        of_refresh=of_refresh,
        ELEMENT=ELEMENT[step.like.dtype],
        PIECE=piece,
        INTERLEAVED=step.x.interleaved[0],
    )
    return o.as_given(step.x)[0], states, y, of_o.compute(call.tiles)


@operator()
def light_step_bwd(
    dout: Tensor,
    dstates: list[Tensor],
    maps: list[Tensor],
    filters: list[Tensor],
    weights: list[Tensor],
    state: list[Tensor],
    y: Tensor,
    states: list[Tensor],
    rule: str,
    heads: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    step = Step("light_step_bwd", maps, filters, weights, state, rule, heads)
    call = step.call
    check_like_maps("dout", [dout], maps[:1])
    check_tensor("y", y, (len(maps), call.B, call.C), call.dtype, step.like)
    dmaps, grads = step.maps.empty_like(), MapList([dout], step.x)
    given, piece = table(step.maps, grads, dmaps)
    y = y.flip(0) if len(maps) > 1 else y.contiguous()
    dfilters = [torch.empty_like(f) for f in step.filters]
    used = dfilters[: 5 if len(maps) > 1 else 3]
    for unused in dfilters[len(used) :]:
        unused.zero_()
    work = _work(step, sum(f.numel() for f in used))
    factors = of_scan = gradients = None
    dy = torch.zeros_like(y) if call.cell is None else torch.empty_like(y)
    dweights: list[Tensor] = []
    dstate: list[Tensor] = []
    if isinstance(call, CellCall):
        states = call.saved("states", _rows(states))
        dstates = call.saved("dstates", _rows(dstates), may_be_absent=True)
        factors = call.factors()
        of_scan = from_row(factors, len(maps) - 1)
        gradients = WeightGradients(call, factors, y, has_refresh=len(maps) > 1, has_scan=True)
        dstate = call.dstate(factors)
    call.run(
        light_step_bwd_kernel,
        table=given,
        **step.given,
        y=y,
        dy=dy,
        work=work,
        P=work.parts.shape[1],
        states_h=call.h_of(states),
        states_c=call.c_of(states),
        dstates_h=call.h_of(dstates),
        dstates_c=call.c_of(dstates),
        h0=call.h0,
        c0=call.c0,
        w=call.weights,
        factors=factors,
        of_scan=of_scan,
        **(gradients.counters if gradients else NO_COUNTERS),
        ELEMENT=ELEMENT[step.like.dtype],
        PIECE=piece,
        INTERLEAVED=step.x.interleaved[0],
    )
    sum_samples(work.parts, used, call.tiles)
    if gradients:
        dweights = gradients.compute()
    return dmaps.as_given(step.maps), dfilters, dweights, dstate


def _rows(states: Sequence[Tensor]) -> list[Tensor]:
    """Return states [B, C] as of a scan of one layer."""
    return [s[None] for s in states]


def _work(step: Step, numbers: int) -> Work:
    """Return what the backward pass writes for itself, with parts of so many numbers a sample."""
    call, before = step.call, len(step.maps.held) > 1
    B, C = call.B, call.C
    d = step.refreshed()
    return Work(
        gate=call.empty(B, C),
        d=d,
        dgate=call.empty(B, C),
        dd=None if d is None else call.empty(B, C),
        dq_row=call.empty(B, C),
        dk_row=call.empty(B, C),
        on_x=call.empty(B, C, 9),
        on_o=call.empty(B, C, 9) if before else None,
        parts=call.empty(B, numbers),
    )
