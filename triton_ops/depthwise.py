"""value = dwconv(x; v), each channel under its own 3x3 filter, and the means of x and of value"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_like_maps, check_maps, check_tensor
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, accumulate_dtype, map_of, pixels_of, row_of, table, tile_of
from .operator import operator
from .stencil import convolve, convolved, correlate, taps_of
from .sums import sum_samples


@triton.jit(do_not_specialize=["W", "B"])
def depthwise_kernel(
    table,  # maps.Table of x and value [B, C, H, W]; value is written
    W,
    v,  # [C, 9]
    y,  # [2, B, C] the means of x and of value; written
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
    A: tl.constexpr = y.dtype.element_ty
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    value, value_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        taps = taps_of(v, 1.0, 0.0, c, C, False)
        of_x, of_value = tl.zeros([CHANNELS, PIXELS], A), tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            of_x += tl.load(tile_of(x, x_stride, c, p, INTERLEAVED), there, 0.0).to(A)
            new = convolved(x, x_stride, None, taps, c, p, C, W, HW, INTERLEAVED).to(ELEMENT)
            of_value += new.to(A)  # zero where there is no pixel
            tl.store(tile_of(value, value_stride, c, p, INTERLEAVED), new, there)
        tl.store(y + row_of(0, b, B, C) + c, tl.sum(of_x, 1) / HW, c < C)
        tl.store(y + row_of(1, b, B, C) + c, tl.sum(of_value, 1) / HW, c < C)


@triton.jit(do_not_specialize=["W", "B"])
def depthwise_bwd_kernel(
    table,  # maps.Table of dvalue, x and dx [B, C, H, W]; dx is written
    W,
    v,  # [C, 9]
    dy,  # [2, B, C] of the means of x and of value
    dv,  # [B, C, 9] of each sample; written
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved_window if INTERLEAVED else TILES.planar_window
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dvalue, dvalue_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    x, x_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    dx, dx_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    dv += row_of(0, b, B, C) * 9
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        of_x = tl.load(dy + row_of(0, b, B, C) + c, c < C, 0.0) / HW
        of_value = tl.load(dy + row_of(1, b, B, C) + c, c < C, 0.0) / HW
        correlate(dv, dvalue, dvalue_stride, of_value, x, x_stride, c, C, W, HW, 0, 9, INTERLEAVED, TILE[1])
        taps = taps_of(v, 1.0, 0.0, c, C, True)
        convolve(dvalue, dvalue_stride, of_value, dx, dx_stride, of_x, taps, c, C, W, HW, INTERLEAVED, TILE[1])


@operator()
def depthwise(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    check_maps([x])
    B, C, _, W = x.shape
    y = x.new_empty((2, B, C), dtype=accumulate_dtype(x.dtype))
    check_tensor("v", v, (C, 1, 3, 3), y.dtype, x)
    given, v = MapList([x]), v.contiguous()
    value = given.empty_like()
    maps, piece = table(given, value)
    how, programs = pieces_of("depthwise", given)
    run(
        depthwise_kernel,
        programs,
        x,
        how,
        table=maps,
        W=W,
        v=v,
        y=y,
        B=B,
        C=C,
        ELEMENT=ELEMENT[x.dtype],
        PIECE=piece,
        INTERLEAVED=given.interleaved[0],
        TILES=how,
    )
    return value.as_given(given)[0], y


@operator()
def depthwise_bwd(dvalue: Tensor, dy: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    check_maps([x])
    check_like_maps("dvalue", [dvalue], [x])
    B, C, _, W = x.shape
    check_tensor("dy", dy, (2, B, C), accumulate_dtype(x.dtype), x)
    check_tensor("v", v, (C, 1, 3, 3), dy.dtype, x)
    given, v, dy = MapList([x]), v.contiguous(), dy.contiguous()
    dx, grads = given.empty_like(), MapList([dvalue], given)
    maps, piece = table(grads, given, dx)
    how, programs = pieces_of("depthwise_bwd", given)
    parts, dv = v.new_empty((B, C * 9)), v.new_empty(v.shape)
    run(
        depthwise_bwd_kernel,
        programs,
        x,
        how,
        table=maps,
        W=W,
        v=v,
        dy=dy,
        dv=parts,
        B=B,
        C=C,
        ELEMENT=ELEMENT[x.dtype],
        PIECE=piece,
        INTERLEAVED=given.interleaved[0],
        TILES=how,
    )
    sum_samples(parts, [dv], how)
    return dx.as_given(given)[0], dv
