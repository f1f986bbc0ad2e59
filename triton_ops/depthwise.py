"""value = dwconv(x; v), each channel under its own 3x3 filter, and the means of x and of value"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_like_maps, check_maps, check_tensor
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, accumulate_dtype, map_of, plane_of, row_of, table, tile_of
from .stencil import convolve, convolved, correlate, taps_of
from .sums import sum_samples


@triton.jit
def depthwise_in(
    x, x_stride, value, value_stride, v, y, y_of_value, begin, end, C, W, HW, INTERLEAVED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    A: tl.constexpr = y.dtype.element_ty
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        taps = taps_of(v, 1.0, 0.0, c, C, False)
        sums, of_value = tl.zeros([CHANNELS, PIXELS], A), tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            sums += tl.load(tile_of(x, x_stride, c, p, INTERLEAVED), there, 0.0).to(A)
            new = convolved(x, x_stride, None, taps, c, p, C, W, HW, INTERLEAVED).to(value.dtype.element_ty)
            of_value += new.to(A)  # zero where there is no pixel
            tl.store(tile_of(value, value_stride, c, p, INTERLEAVED), new, there)
        tl.store(y + c, tl.sum(sums, 1) / HW, c < C)
        tl.store(y_of_value + c, tl.sum(of_value, 1) / HW, c < C)


@triton.jit(do_not_specialize=["W", "B"])
def depthwise_kernel(table, W, v, y, B, C, ELEMENT: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr):
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW, interleaved = plane_of(table, 0)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    value, stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    of_value = y + row_of(1, b, B, C)
    y += row_of(0, b, B, C)
    if interleaved:
        depthwise_in(
            x, x_stride, value, stride, v, y, of_value, begin, end, C, W, HW, True, TILES.interleaved_window
        )  # fmt: skip
    else:
        HW = HW // PIECE * PIECE
        depthwise_in(x, x_stride, value, stride, v, y, of_value, begin, end, C, W, HW, False, TILES.planar_window)


@triton.jit
def depthwise_bwd_in(
    dvalue, dvalue_stride, x, x_stride, dx, dx_stride, v, dy, dy_of_value, dv, begin, end, C, W, HW,
    INTERLEAVED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        plus = tl.load(dy_of_value + c, c < C, 0.0) / HW
        correlate(dv, dvalue, dvalue_stride, plus, x, x_stride, c, C, W, HW, 0, 9, INTERLEAVED, TILE[1])
        taps = taps_of(v, 1.0, 0.0, c, C, True)
        shift = tl.load(dy + c, c < C, 0.0) / HW
        convolve(dvalue, dvalue_stride, plus, dx, dx_stride, shift, taps, c, C, W, HW, INTERLEAVED, TILE[1])


@triton.jit(do_not_specialize=["W", "B"])
def depthwise_bwd_kernel(table, W, v, dy, dv, B, C, ELEMENT: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr):
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW, interleaved = plane_of(table, 0)
    dvalue, stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    x, x_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    dx, dx_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    of_value = dy + row_of(1, b, B, C)
    dy += row_of(0, b, B, C)
    dv += row_of(0, b, B, C) * 9
    if interleaved:
        depthwise_bwd_in(
            dvalue, stride, x, x_stride, dx, dx_stride, v, dy, of_value, dv, begin, end, C, W, HW,
            True, TILES.interleaved_window,
        )  # fmt: skip
    else:
        depthwise_bwd_in(
            dvalue, stride, x, x_stride, dx, dx_stride, v, dy, of_value, dv, begin, end, C, W, HW // PIECE * PIECE,
            False, TILES.planar_window,
        )  # fmt: skip


def depthwise(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    check_maps([x])
    B, C, _, W = x.shape
    y = x.new_empty((2, B, C), dtype=accumulate_dtype(x.dtype))
    check_tensor("v", v, (C, 1, 3, 3), y.dtype, x)
    given, v = MapList([x]), v.contiguous()
    value = given.empty_like()
    maps, piece = table(given, value)
    how, programs = pieces_of("depthwise", given)
    run(depthwise_kernel, programs, x, how, maps, W, v, y, B, C, ELEMENT[x.dtype], piece, how)
    return value.as_given(given)[0], y


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
    run(depthwise_bwd_kernel, programs, x, how, maps, W, v, dy, parts, B, C, ELEMENT[x.dtype], piece, how)
    sum_samples(parts, [dv], how)
    return dx.as_given(given)[0], dv
