"""Gradients of the recurrence over one tile of samples: refresh, then scan, then y. Gates are recomputed from y and
the saved states. docs/backward.md has the derivation.

What the weight gradients need of every row is kept for weight_gradients.py: of each kind the refresh's T layers,
then the scan's, then what the refresh sent to the one product that its layers share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .products import INTO, OUT_OF, multiply, own_columns, sum_of_layers
from .recurrence import (
    first_row,
    gates_of,
    gates_of_last,
    read_gates,
    rows_apart,
    rows_of_tile,
    samples_of_tile,
    share_last,
    start_h,
)


class Factors(NamedTuple):
    """What a backward pass writes for itself and for the weight gradients; None where there is no use for it."""

    h: Any  # [T + 1, B, C] what each layer's projection saw, then h_T
    da: Any  # [2T (+ 1 if dense), B, NG*C] first a itself
    u: Any  # [2T, B, R]
    ds: Any  # [2T + 1, B, R]
    uy: Any  # [T, B, R] split
    dsy: Any  # [T, B, R] split
    p: Any  # [T, B, R] joint
    q: Any  # [T, B, NG*C] split and dense
    last_product: Any  # [B, R], dense: [B, NG*C]: W1h h_T, or Wh h_T
    dh: Any  # [B, C] gradients of the state: at last, of the one before the first layer
    dc: Any  # [B, C]


@triton.jit
def load_c(c0, states_c, t, b, c, B, C, known):
    """Return the memory before layer t: before the first, of the state given, or zero."""
    at = b[:, None] * C + c[None, :]
    if t > 0:
        saved = tl.load(states_c + (tl.cast(t, tl.int64) - 1) * B * C + at, known, 0.0)
    elif c0 is not None:
        saved = tl.load(c0 + at, known, 0.0)
    else:
        saved = tl.zeros(known.shape, states_c.dtype.element_ty)
    return saved


@triton.jit
def begin(states_h, states_c, h0, c0, f, T, B, C, CELL: tl.constexpr, TILES: tl.constexpr):
    """Gather in f.h what every layer saw, of T layers and before the first, and set the gradients of the state to
    zero."""
    A: tl.constexpr = f.h.dtype.element_ty
    b, there = samples_of_tile(B, TILES)
    first_channel, end = own_columns(C, TILES.channels)
    for first in range(first_channel, end, TILES.channels):
        c = first + tl.arange(0, TILES.channels)
        known = there[:, None] & (c < C)[None, :]
        at = b[:, None] * C + c[None, :]
        tl.store(f.dh + at, tl.zeros(known.shape, A), known)
        tl.store(f.dc + at, tl.zeros(known.shape, A), known)
        tl.store(f.h + at, start_h(h0, c0, at, known, A, CELL), known)
        for t in range(0, T):
            layer = tl.cast(t, tl.int64) * B * C
            h = start_h(states_h, states_c, layer + at, known, A, CELL)
            tl.store(f.h + layer + B * C + at, h, known)
    tl.debug_barrier()


@triton.jit
def leave_refresh(dd, d, h, c_last, f, T, B, C, CELL: tl.constexpr, TILES: tl.constexpr):
    """Turn the gates of the refresh into da, from dd and the last state, h and c_last [B, C], and begin f.dc with the
    gradient of that state. d is written where it is wanted."""
    SAMPLES: tl.constexpr = TILES.samples
    CHANNELS: tl.constexpr = TILES.channels
    N = CELL.NG * C
    b, there = samples_of_tile(B, TILES)
    first, end = own_columns(C, TILES.channels)
    for c0 in range(first, end, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        known = there[:, None] & (c < C)[None, :]
        at = b[:, None] * C + c[None, :]
        last_h = tl.load(h + at, known, 0.0)
        last_c = tl.load(c_last + at, known, 0.0) if CELL.saves_c else last_h
        dc = tl.zeros([SAMPLES, CHANNELS], f.h.dtype.element_ty)
        for t in range(0, T):
            row = tl.cast(t, tl.int64) * B + b
            a0, a1, a2, a3 = read_gates(f.da, row * N, c, C, known, CELL.NG)
            here = row[:, None] * C + c[None, :]
            if d is not None:
                new_h, new_c = CELL.step(CELL, a0, a1, a2, a3, last_h, last_c)
                tl.store(d + here, CELL.output(CELL, new_h, new_c), known)
            da0, da1, da2, da3, more = CELL.output_bwd(
                CELL, a0, a1, a2, a3, last_h, last_c, tl.load(dd + here, known, 0.0)
            )  # fmt: skip
            dc += more
            write_gates(f.da, row * N, da0, da1, da2, da3, c, C, known, CELL.NG)
        tl.store(f.dc + at, dc, known)
    tl.debug_barrier()


@triton.jit
def refresh_to_bottleneck(w, f, T, B, R, N, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute ds of the refresh from its da."""
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, _, known = rows_of_tile(m0, T, B, TILES)
        multiply(
            f.ds, row * R, R, f.da, row * N, N, w.w2h, R, known, TILES, PRECISION,
            TRANSPOSED=True, gate=f.u, gate_rows=row * R,
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def gather_refresh(f, T, B, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr):
    """Sum what all layers sent to the product that they share, W1h h_T, or Wh h_T where there is no bottleneck."""
    b, there = samples_of_tile(B, TILES)
    sent = f.da if PROJECTION == "dense" else f.ds
    w1_rows = N if PROJECTION == "dense" else R
    last = (2 * T * B + b) * w1_rows
    sum_of_layers(sent, last, sent, b * w1_rows, B * w1_rows, T, there, w1_rows, TILES.channels)
    tl.debug_barrier()


@triton.jit
def refresh_to_state(w, f, T, B, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Begin f.dh with what that product sends to the last state."""
    b, there = samples_of_tile(B, TILES)
    sent = f.da if PROJECTION == "dense" else f.ds
    w1_rows = N if PROJECTION == "dense" else R
    last = (2 * T * B + b) * w1_rows
    multiply(
        f.dh, b * C, C, sent, last, w1_rows, w.w1h, w.ldw1, there, TILES, PRECISION, OUT_OF, TRANSPOSED=True
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def refresh_bwd_layers(
    dd, d, h, c_last, w, f, T, B, C, R,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through the refresh, from dd and the last state, h and c_last [B, C]: da of all layers, and the gradient
    of that state in f.dh and f.dc. d is written where it is wanted."""
    N = CELL.NG * C
    share_last(h, f.last_product, w, B, C, R, N, PROJECTION, TILES, PRECISION)
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, sample, known = rows_of_tile(m0, T, B, TILES)
        gates_of_last(
            f.last_product, sample, f.u, row * R, f.da, row * N, row, known, w, f.p, f.q, R, N, PROJECTION, TILES,
            PRECISION,
        )  # fmt: skip
    leave_refresh(dd, d, h, c_last, f, T, B, C, CELL, TILES)
    if PROJECTION != "dense":
        refresh_to_bottleneck(w, f, T, B, R, N, TILES, PRECISION)
    gather_refresh(f, T, B, R, N, PROJECTION, TILES)
    refresh_to_state(w, f, T, B, C, R, N, PROJECTION, TILES, PRECISION)


@triton.jit
def write_gates(da, rows, da0, da1, da2, da3, c, C, known, NG: tl.constexpr):
    """Store the gate rows that the cell has, where read_gates reads them."""
    at = da + rows[:, None] + c[None, :]
    tl.store(at, da0, known)
    if NG > 1:
        tl.store(at + C, da1, known)
    if NG > 2:
        tl.store(at + 2 * C, da2, known)
    if NG > 3:
        tl.store(at + 3 * C, da3, known)


@triton.jit
def step_back(
    dstates_h, dstates_c, states_c, c0, f, t, T, B, C, CELL: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """Turn the gates of step t into da, from the gradient of the state after it in f.dh, f.dc and what else arrives
    there, and leave in f.dc that of the state before it."""
    N = CELL.NG * C
    b, there = samples_of_tile(B, TILES)
    row = tl.cast(t, tl.int64) * B + b
    own = T * B + row
    first_channel, end = own_columns(C, TILES.channels)
    for first in range(first_channel, end, TILES.channels):
        c = first + tl.arange(0, TILES.channels)
        known = there[:, None] & (c < C)[None, :]
        at = b[:, None] * C + c[None, :]
        here = row[:, None] * C + c[None, :]
        a0, a1, a2, a3 = read_gates(f.da, own * N, c, C, known, CELL.NG)
        dh, dc = tl.load(f.dh + at, known, 0.0), tl.load(f.dc + at, known, 0.0)
        if dstates_h is not None:
            dh += tl.load(dstates_h + here, known, 0.0)
        if dstates_c is not None:
            dc += tl.load(dstates_c + here, known, 0.0)
        h = tl.load(f.h + here, known, 0.0)
        memory = load_c(c0, states_c, t, b, c, B, C, known) if CELL.saves_c else h
        da0, da1, da2, da3, dc = CELL.step_bwd(CELL, a0, a1, a2, a3, h, memory, dh, dc)
        write_gates(f.da, own * N, da0, da1, da2, da3, c, C, known, CELL.NG)
        tl.store(f.dc + at, dc, known)
    tl.debug_barrier()


@triton.jit
def step_to_bottleneck(w, f, t, T, B, R, N, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute ds of step t from its da."""
    b, there = samples_of_tile(B, TILES)
    own = T * B + tl.cast(t, tl.int64) * B + b
    multiply(
        f.ds, own * R, R, f.da, own * N, N, w.w2h, R, there, TILES, PRECISION,
        INTO, TRANSPOSED=True, gate=f.u, gate_rows=own * R,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def step_to_state(w, f, t, T, B, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute f.dh of the state before step t from its ds, or from its da where there is no bottleneck."""
    b, there = samples_of_tile(B, TILES)
    own = T * B + tl.cast(t, tl.int64) * B + b
    if PROJECTION == "dense":
        multiply(
            f.dh, b * C, C, f.da, own * N, N, w.w1h, w.ldw1, there, TILES, PRECISION, OUT_OF, TRANSPOSED=True
        )  # fmt: skip
    else:
        multiply(
            f.dh, b * C, C, f.ds, own * R, R, w.w1h, w.ldw1, there, TILES, PRECISION, OUT_OF, TRANSPOSED=True
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def scan_bwd_layers(
    dstates_h, dstates_c, states_c, c0, w, f, T, B, C, R,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through the scan, from the gradient of the last state in f.dh, f.dc and those of all states: da of all
    layers, and the gradient of the state before the first in f.dh, f.dc."""
    N = CELL.NG * C
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, _, known = rows_of_tile(m0, T, B, TILES)
        own = T * B + row
        gates_of(
            f.h, row * C, f.u, own * R, f.da, own * N, row, known, w, f.p, f.q, C, R, N, PROJECTION, TILES,
            PRECISION, False,
        )  # fmt: skip
    for back in range(0, T):
        t = T - 1 - back
        step_back(dstates_h, dstates_c, states_c, c0, f, t, T, B, C, CELL, TILES)
        if PROJECTION != "dense":
            step_to_bottleneck(w, f, t, T, B, R, N, TILES, PRECISION)
        step_to_state(w, f, t, T, B, C, R, N, PROJECTION, TILES, PRECISION)


@triton.jit
def keep_start(h0, c0, f, B, C, CELL: tl.constexpr, TILES: tl.constexpr):
    """Add the gradient of the first layer's h to that of c, where it was act(c)."""
    if h0 is None and c0 is not None:
        b, there = samples_of_tile(B, TILES)
        first_channel, end = own_columns(C, TILES.channels)
        for first in range(first_channel, end, TILES.channels):
            c = first + tl.arange(0, TILES.channels)
            known = there[:, None] & (c < C)[None, :]
            at = b[:, None] * C + c[None, :]
            from_h = CELL.act.grad(tl.load(c0 + at, known, 0.0), tl.load(f.dh + at, known, 0.0))
            tl.store(f.dc + at, tl.load(f.dc + at, known, 0.0) + from_h, known)


@triton.jit
def finish_into(
    w, f, T, B, R, N, FIRST: tl.constexpr, BOTH: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Compute the gradient of what a split projection makes of y, as ``finish`` says."""
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, _, there = rows_of_tile(m0, T, B, TILES)
        one = FIRST * T * B + row
        other = T * B + row
        multiply(
            f.dsy, row * R, R, f.da, one * N, N, w.w2y, R, there, TILES, PRECISION,
            TRANSPOSED=True, also=other * N if BOTH else None, gate=f.uy, gate_rows=row * R,
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def finish_out_of(
    dy, w, f, T, B, C, R, N, FIRST: tl.constexpr, BOTH: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dy, of a split projection from what finish_into made."""
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, _, there = rows_of_tile(m0, T, B, TILES)
        one = FIRST * T * B + row
        other = T * B + row
        if PROJECTION == "joint":
            multiply(
                dy, row * C, C, f.ds, one * R, R, w.w1y, w.ldw1, there, TILES, PRECISION,
                TRANSPOSED=True, also=other * R if BOTH else None,
            )  # fmt: skip
        elif PROJECTION == "split":
            multiply(dy, row * C, C, f.dsy, row * R, R, w.w1y, w.ldw1, there, TILES, PRECISION, TRANSPOSED=True)
        else:
            multiply(
                dy, row * C, C, f.da, one * N, N, w.w1y, w.ldw1, there, TILES, PRECISION,
                TRANSPOSED=True, also=other * N if BOTH else None,
            )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def finish(
    dy, w, f, T, B, C, R, FIRST: tl.constexpr, BOTH: tl.constexpr,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dy from what arrived at p or q: from the refresh (FIRST 0), from the scan (FIRST 1), or from both."""
    N = CELL.NG * C
    if PROJECTION == "split":
        finish_into(w, f, T, B, R, N, FIRST, BOTH, TILES, PRECISION)
    finish_out_of(dy, w, f, T, B, C, R, N, FIRST, BOTH, PROJECTION, TILES, PRECISION)
