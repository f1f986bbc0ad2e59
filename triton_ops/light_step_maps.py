"""What light_step does to maps: the filters of each sample over both of them, and their gradients. Programs share out
the maps, each with some channels of a sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .launch import maps_of_program
from .maps import map_of, pixels_of, row_of, tile_of
from .moments import observe, store_plane
from .stencil import MIDDLE, convolve, convolved, correlate, taps_of


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


@triton.jit(do_not_specialize=["W", "B"])
def light_step_filters_kernel(
    table,  # maps.Table: first x, and o_prev where there is one, then o, written; all [B, C, H, W]
    W,
    f,  # Filters
    gate,  # [B, C]
    d,  # [B, C]; None without a cell, or without o_prev
    planes,  # [2, B, C] written, for the moments; None where they are not wanted
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    BEFORE: tl.constexpr = len(table.maps[0].address) > 1
    A: tl.constexpr = gate.dtype.element_ty
    _, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    o, o_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    if BEFORE:
        before, before_stride = map_of(table.maps[0], 1, b, ELEMENT, PIECE)
    row = row_of(0, b, B, C)
    for c0 in range(begin, end, CHANNELS):
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


@triton.jit(do_not_specialize=["W", "B"])
def light_step_tap_sums_kernel(
    table,  # maps.Table: x and perhaps o_prev, then dout; all [B, C, H, W]
    W,
    f,  # Filters
    on_x,  # [B, C, 9] written: the gradients of each sample's filters
    on_o,  # [B, C, 9] written, the middle tap alone if there is no e; None without o_prev
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    FIRST: tl.constexpr = MIDDLE if f.e is None else 0
    END: tl.constexpr = MIDDLE + 1 if f.e is None else 9
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    on_x += row_of(0, b, B, C) * 9
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        correlate(on_x, dout, dout_stride, None, x, x_stride, c, C, W, HW, 0, 9, INTERLEAVED, TILE[1])
        if on_o is not None:
            before, stride = map_of(table.maps[0], 1, b, ELEMENT, PIECE)
            to = on_o + row_of(0, b, B, C) * 9
            correlate(to, dout, dout_stride, None, before, stride, c, C, W, HW, FIRST, END, INTERLEAVED, TILE[1])


@triton.jit(do_not_specialize=["W", "B"])
def light_step_maps_bwd_kernel(
    table,  # maps.Table: dout, then the gradients of x and perhaps of o_prev, written; all [B, C, H, W]
    W,
    f,  # Filters
    gate,  # [B, C]
    d,  # [B, C]; None without a cell, or without o_prev
    dy,  # [MAPS, B, C] the gradients of the means, of o_prev and then of x
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    MAPS: tl.constexpr = len(table.maps[1].address)
    _, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    dx, stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    row = row_of(0, b, B, C)
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        taps = taps_on_x(f, gate, row, c, C, True)
        shift = tl.load(dy + row_of(MAPS - 1, b, B, C) + c, c < C, 0.0) / HW
        convolve(dout, dout_stride, None, dx, stride, shift, taps, c, C, W, HW, INTERLEAVED, TILE[1])
        if MAPS > 1:
            dbefore, stride_before = map_of(table.maps[1], 1, b, ELEMENT, PIECE)
            taps = taps_on_o(f, d, row, c, C, True)
            shift = tl.load(dy + row + c, c < C, 0.0) / HW
            convolve(dout, dout_stride, None, dbefore, stride_before, shift, taps, c, C, W, HW, INTERLEAVED, TILE[1])
