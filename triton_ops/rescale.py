"""x_t <- x_t * d_t, broadcast over HW"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import IN_PLACE, check_gates, check_in_place, check_like_maps, check_maps
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, gate_gradient, scale, table
from .operator import operator


@triton.jit(do_not_specialize=["B"])
def rescale_kernel(
    table,  # maps.Table of x and out [B, C, H, W]; out is written, and may be x
    d,  # [T, B, C]
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    TILES: tl.constexpr,  # tiles.Tiles
):
    t, b, begin, end = maps_of_program(B, C, TILES)
    scale(table, 1, d, None, t, b, B, C, begin, end, ELEMENT, PIECE, TILES)


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


def _rescale_to(x: MapList, out: MapList, d: Tensor) -> None:
    """Fill out, which may be x itself."""
    like = x.held[0]
    given, piece = table(x, out)
    how, programs = pieces_of("rescale", x)
    B, C = like.shape[:2]
    run(
        rescale_kernel,
        programs,
        like,
        how,
        table=given,
        d=d.contiguous(),
        B=B,
        C=C,
        ELEMENT=ELEMENT[like.dtype],
        PIECE=piece,
        TILES=how,
    )


@operator()
def rescale(xs: list[Tensor], d: Tensor) -> list[Tensor]:
    check_maps(xs)
    check_gates(d, xs)
    x = MapList(xs)
    out = x.empty_like()
    _rescale_to(x, out, d)
    return out.as_given(x)


@operator(writes=("xs",))
def rescale_(xs: list[Tensor], d: Tensor) -> None:
    check_maps(xs)
    check_gates(d, xs)
    x = MapList(xs)
    check_in_place(x.held, xs, IN_PLACE)
    _rescale_to(x, x, d)


@operator()
def rescale_bwd(dout: list[Tensor], xs: list[Tensor], d: Tensor) -> tuple[list[Tensor], Tensor]:
    check_maps(xs)
    check_like_maps("dout", dout, xs)
    check_gates(d, xs)
    x = MapList(xs)
    dx = x.empty_like()
    grads = MapList(dout, x)  # held until the launch: a table knows addresses only
    given, piece = table(grads, x, dx)
    d = d.contiguous()
    dd = d.new_empty(d.shape)
    how, programs = pieces_of("rescale_bwd", x)
    B, C = xs[0].shape[:2]
    run(
        rescale_bwd_kernel,
        programs,
        xs[0],
        how,
        table=given,
        d=d,
        dd=dd,
        B=B,
        C=C,
        ELEMENT=ELEMENT[xs[0].dtype],
        PIECE=piece,
        TILES=how,
    )
    return dx.as_given(x), dd
