"""y_t = mean over HW of x_t"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_maps
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, accumulate_dtype, pool, table
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


@operator()
def gap(xs: list[Tensor]) -> Tensor:
    check_maps(xs)
    x = MapList(xs)
    B, C = xs[0].shape[:2]
    y = xs[0].new_empty((len(xs), B, C), dtype=accumulate_dtype(xs[0].dtype))
    given, piece = table(x)
    how, programs = pieces_of("gap", x)
    run(
        gap_kernel,
        programs,
        xs[0],
        how,
        table=given,
        y=y,
        B=B,
        C=C,
        ELEMENT=ELEMENT[xs[0].dtype],
        PIECE=piece,
        TILES=how,
    )
    return y
