"""One layer of light attention:

    o = gate dwconv(x; v) + lam (d o_prev + dwconv(o_prev; e))

Both maps are pooled; the cell, for a tile of samples in one program, runs a step from the mean of x, and its refresh of
the mean of o_prev is d; and the filters of each sample, gate v on x and lam (e + d in the middle) on o_prev, pass over
both maps at once. Programs share out the maps, each with some channels of a sample, in launches of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import phases
from .cell_call import CellCall, NoCell, from_row
from .checks import check_filters, check_light_maps, check_like_maps, check_tensor, require
from .gap import means
from .heads import channel_gates, channel_gates_bwd
from .light_step_maps import (
    Filters,
    light_step_filters_kernel,
    light_step_maps_bwd_kernel,
    light_step_tap_sums_kernel,
)
from .maps import MapList, row_of
from .moments import Moments
from .operator import operator
from .recurrence import hoist, load_start, refresh_layers, scan_layers
from .recurrence_bwd import begin, finish, keep_start, refresh_bwd_layers, scan_bwd_layers
from .stencil import MIDDLE, over_strips
from .sums import sum_samples
from .weight_gradients import NO_COUNTERS, WeightGradients, clear


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


@triton.jit(do_not_specialize=["K", "HEADS", "T", "B"])
def light_step_kernel(
    f,  # Filters
    K,  # taps of f.q and f.k
    HEADS,
    SCALE: tl.constexpr,  # 1 / sqrt(D)
    y,  # [MAPS, B, C] the means of x and of o_prev
    gate,  # [B, C] written
    d,  # [B, C] written; None without a cell, or without o_prev
    states_h,  # [B, C] written; None where the cell saves none
    states_c,  # [B, C] written; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights; None without a cell
    s,  # recurrence.Scratch, of the scan of the one layer x; None without a cell
    of_refresh,  # the same, from the rows of o_prev on
    MAPS: tl.constexpr,  # 2 with o_prev
    T,  # 1: x is the one layer of its scan, o_prev of its refresh
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell, or None
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"; "" without a cell
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    first = tl.program_id(0) * TILES.samples
    for b in range(first, tl.minimum(first + TILES.samples, B)):
        row = row_of(0, b, B, C)
        channel_gates(gate + row, y + row, f.q, f.k, K, HEADS, C, SCALE, TILES)
    if CELL is not None:
        load_start(s, h0, c0, B, C, CELL, TILES)
        hoist(y, w, s.p, s.q, s.uy, MAPS, B, C, R, CELL.NG * C, PROJECTION, TILES, PRECISION)
        scan_layers(states_h, states_c, w, s, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)
        if MAPS > 1:
            h_last = s.h + row_of(1, 0, B, C)
            refresh_layers(d, h_last, s.c, w, of_refresh, T, B, C, R, CELL, PROJECTION, TILES, PRECISION)


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
    for c0 in range(0, C, TILES.columns):
        c = c0 + tl.arange(0, TILES.columns)
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


@triton.jit(do_not_specialize=["K", "HEADS", "P", "COUNT", "T", "B"])
def light_step_bwd_kernel(
    f,  # Filters
    K,  # taps of f.q and f.k
    HEADS,
    SCALE: tl.constexpr,  # 1 / sqrt(D)
    y,  # [MAPS, B, C] the means in the order of the factors, the refresh's before the scan's: of o_prev, of x
    dy,  # [MAPS, B, C] written, in that order; zeros without a cell
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
    MAPS: tl.constexpr,  # 2 with o_prev
    T,  # 1: x is the one layer of its scan, o_prev of its refresh
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell, or None
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"; "" without a cell
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    first = tl.program_id(0) * TILES.samples
    end = tl.minimum(first + TILES.samples, B)
    of_x = row_of(MAPS - 1, 0, B, C)
    for b in range(first, end):
        row = row_of(0, b, B, C)
        channel_gates(work.gate + row, y + of_x + row, f.q, f.k, K, HEADS, C, SCALE, TILES)
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
        B, C = self.like.shape[:2]
        self.x = MapList(maps[:1])
        self.maps = MapList(maps, self.x)
        # Its launch computes the gates, and all of the cell too, but where the cell runs a phase at a time.
        self.gates: NoCell = NoCell(f"{op}_gates", 1, B, C, self.like)
        self.call: NoCell
        if rule or weights:
            self.call = CellCall(op, rule, weights, state, 1, B, C, self.like, rows_of_y=len(maps))
            self.gates = self.gates if self.call.tiles.abreast else self.call
        else:
            require(not state, "state: expected none without a cell")
            self.call = self.gates
        check_filters(filters, C, self.call.dtype, self.like)
        require(heads > 0 and C % heads == 0, f"heads: expected a divisor of {C} channels, got {heads}")
        self.filters = [f.contiguous() for f in filters]
        e = self.filters[4] if len(filters) == 5 and len(maps) == 2 else None
        self.given = Filters(*self.filters[:4], e)
        # What kernels of the cell are told of attention.
        attention = {"K": filters[0].numel(), "HEADS": heads, "SCALE": (C // heads) ** -0.5}
        self.of_cell = {"f": self.given, **attention, "MAPS": len(maps)}

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
    y, gate, d = means(step.maps), call.empty(call.B, call.C), step.refreshed()
    of_o = Moments(step.like, moments, y)
    states: list[Tensor] = []
    scratch = of_refresh = None
    if isinstance(call, CellCall):
        states = [s[0] for s in call.empty_states()]
        if call.tiles.abreast:
            d = phases.forward(call, y, states, scanned=1, refreshed=len(maps) - 1)
        else:
            scratch = call.scratch()
            of_refresh = from_row(scratch, len(maps) - 1)
    step.gates.run(
        light_step_kernel,
        **step.of_cell,
        y=y,
        gate=gate,
        d=d,
        **step.gates.tensors(states),
        s=scratch,
        of_refresh=of_refresh,
    )
    lists = step.maps, o
    how = over_strips(
        "light_step_filters", light_step_filters_kernel, lists, f=step.given, gate=gate, d=d, planes=of_o.planes
    )  # fmt: skip
    return o.as_given(step.x)[0], states, y, of_o.compute(how)


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
    y = y.flip(0) if len(maps) > 1 else y.contiguous()
    dfilters = [torch.empty_like(f) for f in step.filters]
    used = dfilters[: 5 if len(maps) > 1 else 3]
    for unused in dfilters[len(used) :]:
        unused.zero_()
    work = _work(step, sum(f.numel() for f in used))
    lists = step.maps, grads
    over_strips(
        "light_step_tap_sums", light_step_tap_sums_kernel, lists, f=step.given, on_x=work.on_x, on_o=work.on_o
    )  # fmt: skip
    factors = of_scan = gradients = None
    dy = torch.zeros_like(y) if call.cell is None else torch.empty_like(y)
    counters = NO_COUNTERS
    dweights: list[Tensor] = []
    dstate: list[Tensor] = []
    if isinstance(call, CellCall):
        states = call.saved("states", _rows(states))
        dstates = call.saved("dstates", _rows(dstates), may_be_absent=True)
        factors = call.factors()
        gradients = WeightGradients(call, factors, y, has_refresh=len(maps) > 1, has_scan=True)
        dstate = call.dstate(factors)
        if call.tiles.abreast:
            gradients.clear()
            dd = step.filters[3] * work.on_o[..., MIDDLE.value] if work.on_o is not None else None
            last = {"h_last": factors.h[1], "c_last": call.c_of(states), "d": work.d}
            sizes = {"scanned": 1, "refreshed": len(maps) - 1}
            dy = phases.backward(call, factors, y, dd, states, dstates, **last, **sizes)
            factors = None
        else:
            of_scan, counters = from_row(factors, len(maps) - 1), gradients.counters
    step.gates.run(
        light_step_bwd_kernel,
        **step.of_cell,
        y=y,
        dy=dy,
        work=work,
        P=work.parts.shape[1],
        **step.gates.tensors(states, dstates),
        factors=factors,
        of_scan=of_scan,
        **counters,
    )
    of_sample = {"gate": work.gate, "d": work.d, "dy": dy}
    over_strips("light_step_maps_bwd", light_step_maps_bwd_kernel, (grads, dmaps), f=step.given, **of_sample)
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
