"""The cell over one tile of samples, phase by phase.

Mostly one program runs it all: between phases data goes through memory that only this program touches, so a barrier of
its own threads is all that it ever waits for. What only one phase hands to the next lies in scratch of the program's
own, `rows` rows at a time. Where weights are many, programs share out each phase, in a launch of its own
(phases.py): along axis 1 of the grid its columns, along axis 2 its layers; scratch then has every row. Rows (layer,
sample) lie in tensors [T, B, .].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .products import INTO, OUT_OF, ROWS, add, multiply, own_columns


class Weights(NamedTuple):
    """The weights of any projection, as the core uses them; None where it has none."""

    w1h: Any  # [R, C] in rows of ldw1; dense: Wh, Wy [NG*C, C]
    w1y: Any
    b1h: Any  # [R] split only
    b1y: Any
    w2h: Any  # [NG*C, R]
    w2y: Any
    q0: Any  # [NG*C] what q holds besides y
    q1: Any  # may be None
    ldw1: int


class Scratch(NamedTuple):
    """What a forward pass writes for itself; None where the projection has no use for it."""

    h: Any  # [2, B, C] in turns
    c: Any  # [B, C]
    p: Any  # [T, B, R] joint
    q: Any  # [T, B, NG*C] split and dense
    uy: Any  # [T, B, R] split
    last_product: Any  # [B, R], dense: [B, NG*C]: W1h h_T, or Wh h_T
    u: Any  # [programs * rows, R]; abreast: [rows of y * B, R]
    a: Any  # [programs * rows, NG*C]; abreast: [rows of y * B, NG*C]


@triton.jit
def samples_of_tile(B, TILES: tl.constexpr):
    """Return the program's samples, and whether each is there."""
    b = tl.program_id(0) * TILES.samples + tl.arange(0, TILES.samples)
    return b.to(tl.int64), b < B


@triton.jit
def first_row(TILES: tl.constexpr):
    """Return the first of the program's tiles of rows; from one to the next: rows_apart."""
    return tl.program_id(2) * TILES.rows


@triton.jit
def rows_apart(TILES: tl.constexpr):
    return tl.num_programs(2) * TILES.rows


@triton.jit
def rows_of_tile(m0, T, B, TILES: tl.constexpr):
    """Return rows m0, m0 + 1, ... of the program's tile, layer by layer: each one's layer * B + sample, its sample, and
    whether it is there."""
    m = m0 + tl.arange(0, TILES.rows)
    t = m // TILES.samples
    b = tl.program_id(0) * TILES.samples + m % TILES.samples
    return t.to(tl.int64) * B + b, b.to(tl.int64), (t < T) & (b < B)


@triton.jit
def own_rows(row, TILES: tl.constexpr):
    """Return where the rows are in scratch."""
    if TILES.abreast:
        return row
    else:
        return tl.program_id(0).to(tl.int64) * TILES.rows + tl.arange(0, TILES.rows)


@triton.jit
def own_samples(b, TILES: tl.constexpr):
    """Return where the samples are in scratch, one row each."""
    if TILES.abreast:
        return b
    else:
        return tl.program_id(0).to(tl.int64) * TILES.rows + tl.arange(0, TILES.samples)


@triton.jit
def read_gates(a, a_rows, c, C, known, NG: tl.constexpr):
    """Return the gate rows i, f, g, o of channels c; those that the cell lacks repeat the first."""
    at = a + a_rows[:, None] + c[None, :]
    a0 = tl.load(at, known, 0.0)
    a1 = tl.load(at + C, known, 0.0) if NG > 1 else a0
    a2 = tl.load(at + 2 * C, known, 0.0) if NG > 2 else a0
    a3 = tl.load(at + 3 * C, known, 0.0) if NG > 3 else a0
    return a0, a1, a2, a3


@triton.jit
def start_h(h0, c0, at, known, A: tl.constexpr, CELL: tl.constexpr):
    """Return the h that a scan starts from: the one given, that of the c given, or the cell's own."""
    if h0 is not None:
        h = tl.load(h0 + at, known, 0.0)
    elif c0 is not None:
        h = CELL.feed(CELL, tl.load(c0 + at, known, 0.0))
    else:
        h = tl.zeros(known.shape, A) + CELL.start_h
    return h


@triton.jit
def load_start(s, h0, c0, B, C, CELL: tl.constexpr, TILES: tl.constexpr):
    """Fill s.h[0] and s.c: with the state given, or the cell's own start."""
    A: tl.constexpr = s.h.dtype.element_ty
    b, there = samples_of_tile(B, TILES)
    begin, end = own_columns(C, TILES.channels)
    for first in range(begin, end, TILES.channels):
        c = first + tl.arange(0, TILES.channels)
        known = there[:, None] & (c < C)[None, :]
        at = b[:, None] * C + c[None, :]
        tl.store(s.h + at, start_h(h0, c0, at, known, A, CELL), known)
        tl.store(s.c + at, tl.zeros(known.shape, A) if c0 is None else tl.load(c0 + at, known, 0.0), known)
    tl.debug_barrier()


# ---- what y alone decides, for all layers at once ----


@triton.jit
def hoist_into(
    y, w, p, q, uy, T, B, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Compute p (joint), uy (split), or q (dense)."""
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, _, there = rows_of_tile(m0, T, B, TILES)
        if PROJECTION == "joint":
            multiply(p, row * R, R, y, row * C, C, w.w1y, w.ldw1, there, TILES, PRECISION)
        elif PROJECTION == "split":
            multiply(uy, row * R, R, y, row * C, C, w.w1y, w.ldw1, there, TILES, PRECISION, bias=w.b1y, RELU=True)
        else:
            multiply(q, row * N, N, y, row * C, C, w.w1y, w.ldw1, there, TILES, PRECISION, bias=w.q0, bias2=w.q1)
    tl.debug_barrier()


@triton.jit
def hoist_out_of(w, q, uy, T, B, R, N, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute q of a split projection."""
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, _, there = rows_of_tile(m0, T, B, TILES)
        multiply(q, row * N, N, uy, row * R, R, w.w2y, R, there, TILES, PRECISION, bias=w.q0, bias2=w.q1)
    tl.debug_barrier()


@triton.jit
def hoist(
    y, w, p, q, uy, T, B, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Compute p or q."""
    hoist_into(y, w, p, q, uy, T, B, C, R, N, PROJECTION, TILES, PRECISION)
    if PROJECTION == "split":
        hoist_out_of(w, q, uy, T, B, R, N, TILES, PRECISION)


# ---- the gates of rows ----


@triton.jit
def into_bottleneck(
    h, h_rows, u, u_rows, row, there, w, p, C, R, TILES: tl.constexpr, PRECISION: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """Compute u of rows, each from its own h."""
    KIND: tl.constexpr = INTO if STEP else ROWS
    multiply(  # p of a joint projection, the bias of a split one; the other is None
        u, u_rows, R, h, h_rows, C, w.w1h, w.ldw1, there, TILES, PRECISION, KIND,
        RELU=True, plus=p, plus_rows=row * R, bias=w.b1h,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def out_of_bottleneck(
    h, h_rows, u, u_rows, a, a_rows, row, there, w, q, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute the gate pre-activations a = W2h u + q of rows; q of a joint projection is the bias alone. Where there is
    no bottleneck, a = Wh h + q."""
    KIND: tl.constexpr = OUT_OF if STEP else ROWS
    if PROJECTION == "joint":
        multiply(a, a_rows, N, u, u_rows, R, w.w2h, R, there, TILES, PRECISION, KIND, bias=w.q0)
    elif PROJECTION == "split":
        multiply(
            a, a_rows, N, u, u_rows, R, w.w2h, R, there, TILES, PRECISION, KIND, plus=q, plus_rows=row * N
        )  # fmt: skip
    else:
        multiply(
            a, a_rows, N, h, h_rows, C, w.w1h, w.ldw1, there, TILES, PRECISION, KIND, plus=q, plus_rows=row * N
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def gates_of(
    h, h_rows, u, u_rows, a, a_rows, row, there, w, p, q, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute the gate pre-activations a of rows, each from its own h, and u on the way."""
    if PROJECTION != "dense":
        into_bottleneck(h, h_rows, u, u_rows, row, there, w, p, C, R, TILES, PRECISION, STEP)
    out_of_bottleneck(
        h, h_rows, u, u_rows, a, a_rows, row, there, w, q, C, R, N, PROJECTION, TILES, PRECISION, STEP
    )  # fmt: skip


# ---- and of rows that all have the last state ----


@triton.jit
def share_last(h, last_product, w, B, C, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Compute W1h h_T, which the refresh of all layers uses; dense: Wh h_T."""
    b, there = samples_of_tile(B, TILES)
    w1_rows = N if PROJECTION == "dense" else R
    KIND: tl.constexpr = OUT_OF if PROJECTION == "dense" else INTO
    multiply(last_product, b * w1_rows, w1_rows, h, b * C, C, w.w1h, w.ldw1, there, TILES, PRECISION, KIND)
    tl.debug_barrier()


@triton.jit
def into_bottleneck_of_last(last_product, b, u, u_rows, row, there, w, p, R, TILES: tl.constexpr):
    """Compute u from what share_last made."""
    add(u, u_rows, R, last_product, b * R, there, TILES.columns, RELU=True, plus=p, plus_rows=row * R, bias=w.b1h)
    tl.debug_barrier()


@triton.jit
def out_of_bottleneck_of_last(
    last_product, b, u, u_rows, a, a_rows, row, there, w, q, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a from u, or where there is no bottleneck from what share_last made."""
    if PROJECTION == "dense":
        add(a, a_rows, N, last_product, b * N, there, TILES.columns, plus=q, plus_rows=row * N)
        tl.debug_barrier()
    else:
        out_of_bottleneck(
            None, None, u, u_rows, a, a_rows, row, there, w, q, 0, R, N, PROJECTION, TILES, PRECISION, False
        )  # fmt: skip


@triton.jit
def gates_of_last(
    last_product, b, u, u_rows, a, a_rows, row, there, w, p, q, R, N, PROJECTION: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gate pre-activations a of rows, and u on the way."""
    if PROJECTION != "dense":
        into_bottleneck_of_last(last_product, b, u, u_rows, row, there, w, p, R, TILES)
    out_of_bottleneck_of_last(
        last_product, b, u, u_rows, a, a_rows, row, there, w, q, R, N, PROJECTION, TILES, PRECISION
    )  # fmt: skip


# ---- scan and refresh ----


@triton.jit
def take_step(states_h, states_c, s, t, B, C, CELL: tl.constexpr, TILES: tl.constexpr):
    """Go from the state in s.h[t % 2] and s.c to the next one, in s.h[1 - t % 2] and s.c, from the gates of layer t."""
    N = CELL.NG * C
    b, there = samples_of_tile(B, TILES)
    own = own_samples(b, TILES)
    row = tl.cast(t, tl.int64) * B + b
    other = tl.cast(B, tl.int64) * C
    begin, end = own_columns(C, TILES.channels)
    for first in range(begin, end, TILES.channels):
        c = first + tl.arange(0, TILES.channels)
        known = there[:, None] & (c < C)[None, :]
        a0, a1, a2, a3 = read_gates(s.a, own * N, c, C, known, CELL.NG)
        at = b[:, None] * C + c[None, :]
        h = tl.load(s.h + (t % 2) * other + at, known, 0.0)
        new_h, new_c = CELL.step(CELL, a0, a1, a2, a3, h, tl.load(s.c + at, known, 0.0))
        tl.store(s.h + (1 - t % 2) * other + at, new_h, known)
        saved = row[:, None] * C + c[None, :]
        if CELL.saves_h:
            tl.store(states_h + saved, new_h, known)
        if CELL.saves_c:
            tl.store(s.c + at, new_c, known)
            tl.store(states_c + saved, new_c, known)
    tl.debug_barrier()


@triton.jit
def scan_layers(
    states_h, states_c, w, s, T, B, C, R,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go from the state in s.h[0] and s.c to the one after the last layer, in s.h[T % 2] and s.c. h takes turns, since
    a step reads all its channels while it writes them."""
    N = CELL.NG * C
    b, there = samples_of_tile(B, TILES)
    own = own_samples(b, TILES)
    other = tl.cast(B, tl.int64) * C
    for t in range(0, T):
        row = tl.cast(t, tl.int64) * B + b
        h = s.h + (t % 2) * other
        gates_of(
            h, b * C, s.u, own * R, s.a, own * N, row, there, w, s.p, s.q, C, R, N, PROJECTION, TILES, PRECISION, True
        )  # fmt: skip
        take_step(states_h, states_c, s, t, B, C, CELL, TILES)


@triton.jit
def write_refreshed(d, h, c_last, a, a_rows, row, b, there, C, CELL: tl.constexpr, TILES: tl.constexpr):
    """Compute d of rows from their gates and the last state."""
    N = CELL.NG * C
    begin, end = own_columns(C, TILES.columns)
    for c0 in range(begin, end, TILES.columns):
        c = c0 + tl.arange(0, TILES.columns)
        known = there[:, None] & (c < C)[None, :]
        a0, a1, a2, a3 = read_gates(a, a_rows * N, c, C, known, CELL.NG)
        at = b[:, None] * C + c[None, :]
        last_h = tl.load(h + at, known, 0.0)
        memory = tl.load(c_last + at, known, 0.0) if CELL.saves_c else last_h
        new_h, new_c = CELL.step(CELL, a0, a1, a2, a3, last_h, memory)
        tl.store(d + row[:, None] * C + c[None, :], CELL.output(CELL, new_h, new_c), known)
    tl.debug_barrier()


@triton.jit
def refresh_layers(
    d, h, c_last, w, s, T, B, C, R,
    CELL: tl.constexpr, PROJECTION: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute d for all layers, from the last state, h and c_last [B, C]."""
    N = CELL.NG * C
    share_last(h, s.last_product, w, B, C, R, N, PROJECTION, TILES, PRECISION)
    for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
        row, b, there = rows_of_tile(m0, T, B, TILES)
        own = own_rows(row, TILES)
        gates_of_last(
            s.last_product, b, s.u, own * R, s.a, own * N, row, there, w, s.p, s.q, R, N, PROJECTION, TILES, PRECISION
        )  # fmt: skip
        write_refreshed(d, h, c_last, s.a, own, row, b, there, C, CELL, TILES)
