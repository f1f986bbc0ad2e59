"""value = dwconv(x; v), each channel under its own 3x3 filter, and the means of x and of value"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_like_maps, check_maps, check_tensor
from .launch import maps_of_program
from .maps import MapList, accumulate_dtype, map_of, pixels_of, row_of
from .operator import operator
from .stencil import NOTHING, SUMS, convolve, correlate, over_strips, taps_of
from .sums import sum_samples


@triton.jit(do_not_specialize=["B", "W"])
def depthwise_kernel(
    table,  # maps.Table of x and value [B, C, H, W]; value is written
    v,  # [C, 9]
    y,  # [2, B, C] the means of x and of value; written
    B,
    C,
    W,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    STRIP: tl.constexpr,  # stencil.Strip
    TILES: tl.constexpr,  # tiles.Tiles
):
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    size = (C, HW // W, W)
    x = (map_of(table.maps[0], 0, b, ELEMENT, PIECE),)
    value = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, STRIP.channels):
        c = c0 + tl.arange(0, STRIP.channels)
        taps = (taps_of(v, 1.0, 0.0, c, C, False),)
        of_x, of_value = convolve(x, None, taps, value, None, size, c, SUMS, INTERLEAVED, STRIP)
        tl.store(y + row_of(0, b, B, C) + c, tl.sum(of_x, 1) / HW, c < C)
        tl.store(y + row_of(1, b, B, C) + c, tl.sum(of_value, 1) / HW, c < C)


@triton.jit(do_not_specialize=["B", "W"])
def depthwise_bwd_kernel(
    table,  # maps.Table of dvalue, x and dx [B, C, H, W]; dx is written
    v,  # [C, 9]
    dy,  # [2, B, C] of the means of x and of value
    dv,  # [B, C, 9] of each sample; written
    B,
    C,
    W,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    STRIP: tl.constexpr,  # stencil.Strip
    TILES: tl.constexpr,  # tiles.Tiles
):
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    size = (C, HW // W, W)
    dvalue = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    x = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    dx = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    dv += row_of(0, b, B, C) * 9
    for c0 in range(begin, end, STRIP.channels):
        c = c0 + tl.arange(0, STRIP.channels)
        of_x = tl.load(dy + row_of(0, b, B, C) + c, c < C, 0.0) / HW
        of_value = tl.load(dy + row_of(1, b, B, C) + c, c < C, 0.0) / HW
        correlate(dv, dvalue, of_value, x, size, c, 9, INTERLEAVED, STRIP)
        taps = (taps_of(v, 1.0, 0.0, c, C, True),)
        convolve((dvalue,), of_value, taps, dx, of_x, size, c, NOTHING, INTERLEAVED, STRIP)


@operator()
def depthwise(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    check_maps([x])
    B, C = x.shape[:2]
    y = x.new_empty((2, B, C), dtype=accumulate_dtype(x.dtype))
    check_tensor("v", v, (C, 1, 3, 3), y.dtype, x)
    given = MapList([x])
    value = given.empty_like()
    over_strips("depthwise", depthwise_kernel, (given, value), v=v.contiguous(), y=y)
    return value.as_given(given)[0], y


@operator()
def depthwise_bwd(dvalue: Tensor, dy: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    check_maps([x])
    check_like_maps("dvalue", [dvalue], [x])
    B, C = x.shape[:2]
    check_tensor("dy", dy, (2, B, C), accumulate_dtype(x.dtype), x)
    check_tensor("v", v, (C, 1, 3, 3), dy.dtype, x)
    given, v = MapList([x]), v.contiguous()
    dx, grads = given.empty_like(), MapList([dvalue], given)
    parts, dv = v.new_empty((B, C * 9)), v.new_empty(v.shape)
    tensors = {"v": v, "dy": dy.contiguous(), "dv": parts}
    how = over_strips("depthwise_bwd", depthwise_bwd_kernel, (grads, given, dx), **tensors)
    sum_samples(parts, [dv], how)
    return dx.as_given(given)[0], dv
