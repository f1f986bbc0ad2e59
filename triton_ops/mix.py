"""o = sum over m of coef_m values_m: maps of one size, coef [M, B, C]"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .checks import check_gates, check_like_maps, check_maps, require
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, map_of, pixels_of, row_of, table, tile_of
from .moments import Moments, observe, store_plane, taken_by_lanes
from .operator import operator


@triton.jit(do_not_specialize=["M", "B"])
def mix_kernel(
    table,  # maps.Table of the M values and of o [B, C, H, W]; o is written
    coef,  # [M, B, C]
    planes,  # [2, B, C] written, for the moments; None where they are not wanted
    M,  # values
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    A: tl.constexpr = coef.dtype.element_ty
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    o, o_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        mean, m2 = tl.zeros([CHANNELS, PIXELS], A), tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            sums = tl.zeros([CHANNELS, PIXELS], A)
            for m in range(0, M):
                value, stride = map_of(table.maps[0], m, b, ELEMENT, PIECE)
                scale = tl.load(coef + row_of(m, b, B, C) + c, c < C, 0.0)
                sums += tl.load(tile_of(value, stride, c, p, INTERLEAVED), there, 0.0).to(A) * scale[:, None]
            new = sums.to(ELEMENT)
            tl.store(tile_of(o, o_stride, c, p, INTERLEAVED), new, there)
            if planes is not None:
                mean, m2 = observe(mean, m2, new.to(A), there, p0 // PIXELS + 1)
        if planes is not None:
            store_plane(planes, mean, m2, taken_by_lanes(HW, PIXELS), c, b, B, C, HW)


@triton.jit(do_not_specialize=["M", "B"])
def mix_bwd_kernel(
    table,  # maps.Table of dout, the M values, dvalues and, where it is given, later [B, C, H, W]; dvalues are written
    coef,  # [M, B, C]
    dcoef,  # [M, B, C] written
    M,  # values
    B,
    C,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    A: tl.constexpr = coef.dtype.element_ty
    # Programs that read the same piece of dout are neighbours: it comes from memory once.
    m, piece = tl.program_id(0) % M, tl.program_id(0) // M
    pieces = tl.cdiv(C, TILES.piece)
    b, begin = piece // pieces, piece % pieces * TILES.piece
    end = tl.minimum(begin + TILES.piece, C)
    row = row_of(m, b, B, C)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    value, stride = map_of(table.maps[1], m, b, ELEMENT, PIECE)
    dvalue, dvalue_stride = map_of(table.maps[2], m, b, ELEMENT, PIECE)
    if len(table.maps) > 3:
        later, later_stride = map_of(table.maps[3], m, b, ELEMENT, PIECE)
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        scale = tl.load(coef + row + c, c < C, 0.0)
        sums = tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            g = tl.load(tile_of(dout, dout_stride, c, p, INTERLEAVED), there, 0.0).to(A)
            sums += g * tl.load(tile_of(value, stride, c, p, INTERLEAVED), there, 0.0).to(A)
            new = g * scale[:, None]
            if len(table.maps) > 3:
                new += tl.load(tile_of(later, later_stride, c, p, INTERLEAVED), there, 0.0).to(A)
            tl.store(tile_of(dvalue, dvalue_stride, c, p, INTERLEAVED), new.to(ELEMENT), there)
        tl.store(dcoef + row + c, tl.sum(sums, 1), c < C)


def _check(values: list[Tensor], coef: Tensor) -> None:
    """Require values of one size, and coef [M, B, C]."""
    check_maps(values)
    require(all(v.shape == values[0].shape for v in values), "values: expected maps of one size")
    check_gates(coef, values, "coef")


@operator()
def mix(values: list[Tensor], coef: Tensor, moments: bool) -> tuple[Tensor, list[Tensor]]:
    _check(values, coef)
    first = MapList(values[:1])
    given, o, coef = MapList(values, first), first.empty_like(), coef.contiguous()
    maps, piece = table(given, o)
    how, programs = pieces_of("mix", first)
    of_o = Moments(values[0], moments, coef)
    B, C = values[0].shape[:2]
    run(
        mix_kernel,
        programs,
        coef,
        how,
        table=maps,
        coef=coef,
        planes=of_o.planes,
        M=len(values),
        B=B,
        C=C,
        ELEMENT=ELEMENT[values[0].dtype],
        PIECE=piece,
        INTERLEAVED=first.interleaved[0],
        TILES=how,
    )
    return o.as_given(first)[0], of_o.compute(how)


@operator()
def mix_bwd(dout: Tensor, later: list[Tensor], values: list[Tensor], coef: Tensor) -> tuple[list[Tensor], Tensor]:
    _check(values, coef)
    check_like_maps("dout", [dout], values[:1])
    if later:
        check_like_maps("later", later, values)
    first = MapList(values[:1])
    given, coef = MapList(values, first), coef.contiguous()
    grads, dvalues = MapList([dout], first), given.empty_like()
    from_later = [MapList(later, first)] if later else []
    maps, piece = table(grads, given, dvalues, *from_later)
    how, programs = pieces_of("mix_bwd", given)
    dcoef = coef.new_empty(coef.shape)
    B, C = values[0].shape[:2]
    run(
        mix_bwd_kernel,
        programs,
        coef,
        how,
        table=maps,
        coef=coef,
        dcoef=dcoef,
        M=len(values),
        B=B,
        C=C,
        ELEMENT=ELEMENT[values[0].dtype],
        PIECE=piece,
        INTERLEAVED=first.interleaved[0],
        TILES=how,
    )
    return dvalues.as_given(given), dcoef
