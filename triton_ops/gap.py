"""y_t = mean over HW of x_t"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_maps
from .launch import maps_of_program, over_maps
from .maps import MapList, accumulate_dtype, pool
from .operator import operator


@triton.jit(do_not_specialize=["B"])
def gap_kernel(
    table,  # maps.Table of x [B, C, H, W]
    y,  # [T, B, C] written
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    TILES: tl.constexpr,  # tiles.Tiles
):
    t, b, begin, end = maps_of_program(B, C, TILES)
    pool(table, y, t, b, B, C, begin, end, ELEMENT, PIECE, TILES)


def means(x: MapList) -> Tensor:
    """Return the mean of each map, [T, B, C]."""
    like = x.held[0]
    B, C = like.shape[:2]
    y = like.new_empty((len(x.held), B, C), dtype=accumulate_dtype(like.dtype))
    over_maps("gap", gap_kernel, (x,), y=y)
    return y


@operator()
def gap(xs: list[Tensor]) -> Tensor:
    check_maps(xs)
    return means(MapList(xs))
