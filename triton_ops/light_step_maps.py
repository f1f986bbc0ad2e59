"""What light_step does to maps: the filters of each sample over both of them, and their gradients. Programs share out
the maps, each with some channels of a sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .launch import maps_of_program
from .maps import map_of, pixels_of, row_of
from .moments import store_plane, taken_by_lanes
from .stencil import MOMENTS, NOTHING, convolve, correlate, taps_of


class Filters(NamedTuple):
    """The filters of a layer, which all samples share."""

    q: Any  # [K]
    k: Any  # [K]
    v: Any  # [C, 9]
    lam: Any  # [C]
    e: Any  # [C, 9], or None


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


@triton.jit(do_not_specialize=["B", "W"])
def light_step_filters_kernel(
    table,  # maps.Table: first x, and o_prev where there is one, then o, written; all [B, C, H, W]
    f,  # Filters
    gate,  # [B, C]
    d,  # [B, C]; None without a cell, or without o_prev
    planes,  # [2, B, C] written, for the moments; None where they are not wanted
    B,
    C,
    W,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    STRIP: tl.constexpr,  # stencil.Strip
    TILES: tl.constexpr,  # tiles.Tiles
):
    KEPT: tl.constexpr = NOTHING if planes is None else MOMENTS
    _, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    size = (C, HW // W, W)
    row = row_of(0, b, B, C)
    o = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, STRIP.channels):
        c = c0 + tl.arange(0, STRIP.channels)
        maps = (map_of(table.maps[0], 0, b, ELEMENT, PIECE),)
        taps = (taps_on_x(f, gate, row, c, C, False),)
        if len(table.maps[0].address) > 1:
            maps += (map_of(table.maps[0], 1, b, ELEMENT, PIECE),)
            taps += (taps_on_o(f, d, row, c, C, False),)
        mean, m2 = convolve(maps, None, taps, o, None, size, c, KEPT, INTERLEAVED, STRIP)
        if planes is not None:
            count = size[1] * taken_by_lanes(W, STRIP.pieces * STRIP.columns)
            store_plane(planes, mean, m2, count, c, b, B, C, HW)


@triton.jit(do_not_specialize=["B", "W"])
def light_step_tap_sums_kernel(
    table,  # maps.Table: x and perhaps o_prev, then dout; all [B, C, H, W]
    f,  # Filters
    on_x,  # [B, C, 9] written: the gradients of each sample's filters
    on_o,  # [B, C, 9] written, the middle tap alone if there is no e; None without o_prev
    B,
    C,
    W,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    STRIP: tl.constexpr,  # stencil.Strip
    TILES: tl.constexpr,  # tiles.Tiles
):
    TAPS: tl.constexpr = 1 if f.e is None else 9
    _, b, begin, end = maps_of_program(B, C, TILES)
    size = (C, pixels_of(table, PIECE, INTERLEAVED) // W, W)
    row = row_of(0, b, B, C) * 9
    dout = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    x = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, STRIP.channels):
        c = c0 + tl.arange(0, STRIP.channels)
        correlate(on_x + row, dout, None, x, size, c, 9, INTERLEAVED, STRIP)
        if on_o is not None:
            before = map_of(table.maps[0], 1, b, ELEMENT, PIECE)
            correlate(on_o + row, dout, None, before, size, c, TAPS, INTERLEAVED, STRIP)


@triton.jit(do_not_specialize=["B", "W"])
def light_step_maps_bwd_kernel(
    table,  # maps.Table: dout, then the gradients of x and perhaps of o_prev, written; all [B, C, H, W]
    f,  # Filters
    gate,  # [B, C]
    d,  # [B, C]; None without a cell, or without o_prev
    dy,  # [MAPS, B, C] the gradients of the means, of o_prev and then of x
    B,
    C,
    W,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    STRIP: tl.constexpr,  # stencil.Strip
    TILES: tl.constexpr,  # tiles.Tiles
):
    MAPS: tl.constexpr = len(table.maps[1].address)
    _, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    size = (C, HW // W, W)
    dout = (map_of(table.maps[0], 0, b, ELEMENT, PIECE),)
    dx = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    row = row_of(0, b, B, C)
    for c0 in range(begin, end, STRIP.channels):
        c = c0 + tl.arange(0, STRIP.channels)
        taps = (taps_on_x(f, gate, row, c, C, True),)
        shift = tl.load(dy + row_of(MAPS - 1, b, B, C) + c, c < C, 0.0) / HW
        convolve(dout, None, taps, dx, shift, size, c, NOTHING, INTERLEAVED, STRIP)
        if MAPS > 1:
            dbefore = map_of(table.maps[1], 1, b, ELEMENT, PIECE)
            taps = (taps_on_o(f, d, row, c, C, True),)
            shift = tl.load(dy + row + c, c < C, 0.0) / HW
            convolve(dout, None, taps, dbefore, shift, size, c, NOTHING, INTERLEAVED, STRIP)
