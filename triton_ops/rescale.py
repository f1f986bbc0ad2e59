"""x_t <- x_t * d_t, broadcast over HW"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import IN_PLACE, check_gates, check_in_place, check_like_maps, check_maps
from .launch import maps_of_program, over_maps
from .maps import MapList, accumulate_dtype, gate_gradient, scale
from .operator import operator


@triton.jit(do_not_specialize=["B"])
def rescale_kernel(
    table,  # maps.Table of x and out [B, C, H, W]; out is written, and may be x
    d,  # [T, B, C]
    dy,  # [T, B, C], added as dy / HW; or None
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    TILES: tl.constexpr,  # tiles.Tiles
):
    t, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    scale(table, 1, d, dy, t, b, B, C, begin, end, ELEMENT, PIECE, TILES)


@triton.jit(do_not_specialize=["B"])
def gate_gradient_kernel(
    table,  # maps.Table of dout and x [B, C, H, W]
    dd,  # [T, B, C] written
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    TILES: tl.constexpr,  # tiles.Tiles
):
    t, b, begin, end = maps_of_program(B, C, TILES)
    gate_gradient(table, dd, t, b, B, C, begin, end, ELEMENT, PIECE, TILES)


@triton.jit(do_not_specialize=["B"])
def rescale_bwd_kernel(
    table,  # maps.Table of dout, x and dx [B, C, H, W]; dx is written
    d,  # [T, B, C]
    dd,  # [T, B, C] written
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    TILES: tl.constexpr,  # tiles.Tiles
):
    t, b, begin, end = maps_of_program(B, C, TILES)
    gate_gradient(table, dd, t, b, B, C, begin, end, ELEMENT, PIECE, TILES)
    scale(table, 2, d, None, t, b, B, C, begin, end, ELEMENT, PIECE, TILES)


def scale_maps(x: MapList, out: MapList, d: Tensor, dy: Tensor | None = None) -> None:
    """Fill out, which may be x itself, with x d + dy / HW."""
    over_maps("rescale", rescale_kernel, (x, out), d=d, dy=dy)


def gate_gradients(dout: MapList, x: MapList) -> Tensor:
    """Return dd [T, B, C], the sums of dout x over the pixels of each map."""
    like = x.held[0]
    dd = like.new_empty((len(x.held), *like.shape[:2]), dtype=accumulate_dtype(like.dtype))
    over_maps("gate_gradient", gate_gradient_kernel, (dout, x), dd=dd)
    return dd


@operator()
def rescale(xs: list[Tensor], d: Tensor) -> list[Tensor]:
    check_maps(xs)
    check_gates(d, xs)
    x = MapList(xs)
    out = x.empty_like()
    scale_maps(x, out, d.contiguous())
    return out.as_given(x)


@operator(writes=("xs",))
def rescale_(xs: list[Tensor], d: Tensor) -> None:
    check_maps(xs)
    check_gates(d, xs)
    x = MapList(xs)
    check_in_place(x.held, xs, IN_PLACE)
    scale_maps(x, x, d.contiguous())


@operator()
def rescale_bwd(dout: list[Tensor], xs: list[Tensor], d: Tensor) -> tuple[list[Tensor], Tensor]:
    check_maps(xs)
    check_like_maps("dout", dout, xs)
    check_gates(d, xs)
    x = MapList(xs)
    dx, d = x.empty_like(), d.contiguous()
    dd = d.new_empty(d.shape)
    over_maps("rescale_bwd", rescale_bwd_kernel, (MapList(dout, x), x, dx), d=d, dd=dd)
    return dx.as_given(x), dd
