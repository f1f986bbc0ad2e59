"""3x3 filters over planes, each channel its own, with zeros around the plane. Tap 3 i + j looks at the pixel i - 1 rows
below and j - 1 columns to the right.

A program walks down a strip of each plane, and reads a row of it once: what it sees there goes, under each row of the
filter, to the sums of the row above, of the same and of the one below. Rows are [c, piece, n]: n neighbouring columns
that one access reads. A plane is what map_of returns, its size (C, H, W).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .launch import pieces_of, run
from .maps import ELEMENT, MapList, table
from .moments import observe
from .tiles import CHANNELS_AT_ONCE, ROWS_AHEAD, Tiles, strip

MIDDLE = tl.constexpr(4)
ROWS = tl.constexpr(ROWS_AHEAD)
# What a filter keeps of the maps that it reads and writes.
NOTHING, SUMS, MOMENTS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# ---- a row ----


@triton.jit
def places(plane, size, c, left, row, INTERLEAVED: tl.constexpr, STRIP: tl.constexpr):
    """Return pointers [c, piece] to the first columns of the pieces of a row, which of them are inside the plane, and
    the distance between columns."""
    x, stride = plane
    C, H, W = size
    column = left + tl.arange(0, STRIP.pieces) * STRIP.columns
    end = tl.where((row >= 0) & (row < H), W, 0)  # of a row that there is
    inside = (c < C)[:, None] & (column < end)[None, :]
    if INTERLEAVED:
        return x + c[:, None] + (row * W + column)[None, :] * stride, inside, stride
    else:  # W is a whole number of pieces, which this tells the compiler
        return x + c[:, None] * stride + (row * (W // STRIP.columns * STRIP.columns) + column)[None, :], inside, 1


@triton.jit
def moved(x, edge, TO_THE_RIGHT: tl.constexpr):
    """Return x [c, piece, n] moved by a column, with edge [c, piece] in the place that is left."""
    C: tl.constexpr = x.shape[0]
    PIECES: tl.constexpr = x.shape[1]
    N: tl.constexpr = x.shape[2]
    if N == 1:
        return edge[:, :, None]
    else:
        even, odd = tl.split(tl.reshape(x, [C, PIECES, N // 2, 2]))
        pairs = tl.join(moved(odd, edge, True), even) if TO_THE_RIGHT else tl.join(odd, moved(even, edge, False))
        return tl.reshape(pairs, [C, PIECES, N])


@triton.jit
def middle_of(plane, plus, size, c, left, row, A: tl.constexpr, INTERLEAVED: tl.constexpr, STRIP: tl.constexpr):
    """Return a row of a map + plus, [c, piece, n]; plus [c], which may be None, is added inside the plane."""
    at, inside, step = places(plane, size, c, left, row, INTERLEAVED, STRIP)
    n = tl.arange(0, STRIP.columns)[None, None, :]
    middle = tl.load(at[:, :, None] + n * step, inside[:, :, None], 0.0).to(A)
    return middle if plus is None else middle + tl.where(inside, plus[:, None], 0.0)[:, :, None]


@triton.jit
def seen(plane, plus, size, c, left, row, A: tl.constexpr, INTERLEAVED: tl.constexpr, STRIP: tl.constexpr):
    """Return a row of a map + plus as its pixels see it to their left, where they are, and to their right."""
    middle = middle_of(plane, plus, size, c, left, row, A, INTERLEAVED, STRIP)
    at, inside, step = places(plane, size, c, left, row, INTERLEAVED, STRIP)
    column = (left + tl.arange(0, STRIP.pieces) * STRIP.columns)[None, :]
    has_left, has_right = inside & (column > 0), inside & (column + STRIP.columns < size[2])
    left_edge = tl.load(at - step, has_left, 0.0).to(A)
    right_edge = tl.load(at + STRIP.columns * step, has_right, 0.0).to(A)
    if plus is not None:
        left_edge += tl.where(has_left, plus[:, None], 0.0)
        right_edge += tl.where(has_right, plus[:, None], 0.0)
    return moved(middle, left_edge, True), middle, moved(middle, right_edge, False)


# ---- filters ----


@triton.jit
def taps_of(w, scale, middle, c, C, FLIPPED: tl.constexpr):
    """Return the taps of channels c, each [c]: scale w, w [C, 9], with `middle` added to its middle one; that one alone
    if w is None. Flipped, the filter is that of the gradient."""
    taps = ()
    if w is None:
        taps = (scale * middle,)
    else:
        for k in tl.static_range(9):
            tap = tl.load(w + c * 9 + (8 - k if FLIPPED else k), c < C, 0.0)
            taps += (scale * (tap + middle if k == MIDDLE else tap),)
    return taps


@triton.jit
def under(sums, sees, taps, ROW: tl.constexpr):
    """Return sums, now with what a ROW of the filter makes of what is seen."""
    if len(taps) == 9:
        for j in tl.static_range(3):
            sums += taps[3 * ROW + j][:, None, None] * sees[j]
    elif ROW == 1:
        sums += taps[0][:, None, None] * sees[1]
    return sums


@triton.jit
def convolve(
    maps, plus, taps, out, shift, size, c, KEPT: tl.constexpr, INTERLEAVED: tl.constexpr, STRIP: tl.constexpr
):  # fmt: skip
    """Filter all pixels of channels c: out = the sum of the maps + plus under their taps, + shift [c]; plus and shift
    may be None. Return what was to be KEPT, two numbers for each lane: SUMS of the first map and of out, MOMENTS of
    out, or zeros."""
    A: tl.constexpr = taps[0][0].dtype
    SHAPE: tl.constexpr = (STRIP.channels, STRIP.pieces, STRIP.columns)
    WIDTH: tl.constexpr = STRIP.pieces * STRIP.columns
    LANES: tl.constexpr = (STRIP.channels, WIDTH)
    H, W = size[1], size[2]
    first, second = tl.zeros(SHAPE, A), tl.zeros(SHAPE, A)
    n = tl.arange(0, STRIP.columns)[None, None, :]
    for left in range(0, W, WIDTH):
        above, here = tl.zeros(SHAPE, A), tl.zeros(SHAPE, A)
        for top in range(0, H + 1, ROWS):  # the last row is finished by what would be below it
            rows = ()
            for i in tl.static_range(ROWS):
                for m in tl.static_range(len(maps)):
                    rows += (seen(maps[m], plus, size, c, left, top + i, A, INTERLEAVED, STRIP),)
            for i in tl.static_range(ROWS):
                below = tl.zeros(SHAPE, A)
                for m in tl.static_range(len(maps)):
                    sees = rows[i * len(maps) + m]
                    above = under(above, sees, taps[m], 2)
                    here = under(here, sees, taps[m], 1)
                    below = under(below, sees, taps[m], 0)
                done = top + i - 1
                at, inside, step = places(out, size, c, left, done, INTERLEAVED, STRIP)
                there = inside[:, :, None]
                if shift is not None:
                    above += shift[:, None, None]
                new = above.to(out[0].dtype.element_ty)
                tl.store(at[:, :, None] + n * step, new, there)
                if KEPT == MOMENTS:
                    seen_so_far = left // WIDTH * H + tl.maximum(done, 0)
                    first, second = observe(first, second, new.to(A), there, seen_so_far + 1)
                if KEPT == SUMS:
                    first += rows[i * len(maps)][1]
                    second += tl.where(there, new.to(A), 0.0)
                above, here = here, below
    return tl.reshape(first, LANES), tl.reshape(second, LANES)


@triton.jit
def correlate(to, g, plus, x, size, c, TAPS: tl.constexpr, INTERLEAVED: tl.constexpr, STRIP: tl.constexpr):
    """Fill to[c, k], of [C, 9], with the sum over pixels of the map g + plus times what tap k sees of x, for all
    TAPS = 9 or the middle one alone: all that the gradient of a filter needs."""
    A: tl.constexpr = to.dtype.element_ty
    SHAPE: tl.constexpr = (STRIP.channels, STRIP.pieces, STRIP.columns)
    PIECES: tl.constexpr = (STRIP.channels, STRIP.pieces)
    H, W = size[1], size[2]
    sums = ()
    for _ in tl.static_range(TAPS):
        sums += (tl.zeros(PIECES, A),)
    for left in range(0, W, STRIP.pieces * STRIP.columns):
        above = tl.zeros(SHAPE, A)
        here = middle_of(g, plus, size, c, left, 0, A, INTERLEAVED, STRIP)
        for top in range(0, H, ROWS):
            of_g, rows = (), ()
            for i in tl.static_range(ROWS):
                of_g += (middle_of(g, plus, size, c, left, top + i + 1, A, INTERLEAVED, STRIP),)
                if TAPS == 9:
                    rows += (seen(x, None, size, c, left, top + i, A, INTERLEAVED, STRIP),)
                else:
                    rows += (middle_of(x, None, size, c, left, top + i, A, INTERLEAVED, STRIP),)
            for i in tl.static_range(ROWS):
                below = of_g[i]
                more = ()
                for k in tl.static_range(TAPS):  # row 0 of the filter looks up: at this row, from the one below
                    if TAPS == 9:
                        pixels = below if k < 3 else here if k < 6 else above
                        more += (sums[k] + tl.sum(pixels * rows[i][k % 3], 2),)
                    else:
                        more += (sums[k] + tl.sum(here * rows[i], 2),)
                sums = more
                above, here = here, below
    for k in tl.static_range(TAPS):
        tl.store(to + c * 9 + (k if TAPS == 9 else MIDDLE), tl.sum(sums[k], 1), c < size[0])


# ---- launches ----


def over_strips(op: str, kernel: Any, lists: tuple[MapList, ...], **args: Any) -> Tiles:
    """Launch a kernel over pieces of the channels of all samples, with its arguments beside the table of these lists,
    all of one layer and size. Return its tiles."""
    like, interleaved = lists[0].held[0], lists[0].interleaved[0]
    B, C, _, W = like.shape
    given, piece = table(*lists, most=CHANNELS_AT_ONCE if interleaved else 16)
    how, programs = pieces_of(op, lists[0])
    if interleaved:  # a thread has the taps of all the channels that it reads
        how = how._replace(registers=max(how.registers, 168))
    shape = {"W": W, "B": B, "C": C, "ELEMENT": ELEMENT[like.dtype], "PIECE": piece, "INTERLEAVED": interleaved}
    run(kernel, programs, like, how, table=given, **args, **shape, STRIP=strip(how, W, piece, interleaved), TILES=how)
    return how
