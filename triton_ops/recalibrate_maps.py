"""What recalibrate does to maps: out = f(shortcut + a h), f = relu or nothing, and its gradients, h being what a cell
shows of its state after the mean of a. Programs share out the maps, each with some channels of a sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cells import Cell
from .cells.activation import relu, relu_grad
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, map_of, pixels_of, row_of, table, tile_of


@triton.jit
def state_at(states_h, states_c, at, known, CELL: tl.constexpr):
    """Return h and c at these places of [B, C]; of the two, what is not saved is the other."""
    h = tl.load((states_h if CELL.saves_h else states_c) + at, known, 0.0)
    c = tl.load(states_c + at, known, 0.0) if CELL.saves_c else h
    return h, c


@triton.jit(do_not_specialize=["B"])
def recalibrate_kernel(
    table,  # maps.Table of a, out and, where there is one, shortcut [B, C, H, W]; out is written, and may be another
    states_h,  # [B, C]; None where the cell saves none
    states_c,  # [B, C]; None where the cell saves none
    B,
    C,
    CELL: tl.constexpr,  # cells.Cell
    RELU: tl.constexpr,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    ADDS: tl.constexpr = len(table.maps) > 2
    _, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    a, a_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    out, out_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    if ADDS:
        shortcut, shortcut_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        h, memory = state_at(states_h, states_c, row_of(0, b, B, C) + c, c < C, CELL)
        shown = CELL.output(CELL, h, memory)
        for p0 in range(0, HW, TILE[1]):
            p = p0 + tl.arange(0, TILE[1])
            there = (c < C)[:, None] & (p < HW)[None, :]
            new = tl.load(tile_of(a, a_stride, c, p, INTERLEAVED), there, 0.0)
            if ADDS:  # both are asked for before the first is used
                added = tl.load(tile_of(shortcut, shortcut_stride, c, p, INTERLEAVED), there, 0.0)
                new = new.to(shown.dtype) * shown[:, None] + added.to(shown.dtype)
            else:
                new = new.to(shown.dtype) * shown[:, None]
            if RELU:
                new = relu(new)
            tl.store(tile_of(out, out_stride, c, p, INTERLEAVED), new.to(ELEMENT), there)


@triton.jit
def let_through(
    dout, dout_stride, out, out_stride, c, p, C, HW, A: tl.constexpr, INTERLEAVED: tl.constexpr
):  # fmt: skip
    """Return the gradient before the relu whose result was out, or without one dout, at pixels p of channels c."""
    there = (c < C)[:, None] & (p < HW)[None, :]
    g = tl.load(tile_of(dout, dout_stride, c, p, INTERLEAVED), there, 0.0)
    if out is None:
        return g.to(A)
    else:
        result = tl.load(tile_of(out, out_stride, c, p, INTERLEAVED), there, 0.0)
        return relu_grad(result.to(A), g.to(A))


@triton.jit(do_not_specialize=["B"])
def shown_gradient_kernel(
    table,  # maps.Table of dout, a and, where there was a relu, out [B, C, H, W]
    dd,  # [B, C] the gradient of what is shown; written without a CELL, else None
    states_h,  # [B, C]; None where the cell saves none
    states_c,  # [B, C]; None where the cell saves none
    dstates_h,  # [B, C]; None where no other gradient arrives
    dstates_c,  # [B, C]; None where no other gradient arrives
    to_h,  # [B, C] all that arrives at states_h; written
    to_c,  # [B, C] all that arrives at states_c; written
    B,
    C,
    CELL: tl.constexpr,  # cells.Cell; None where what it shows is not known yet
    A: tl.constexpr,  # dtype of sums
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Sum over the pixels of each plane what arrives at what the cell shows, and send it on to the state."""
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    a, a_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    out, out_stride = None, None
    if len(table.maps) > 2:
        out, out_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        sums = tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            of_a = tl.load(tile_of(a, a_stride, c, p, INTERLEAVED), (c < C)[:, None] & (p < HW)[None, :], 0.0)
            g = let_through(dout, dout_stride, out, out_stride, c, p, C, HW, A, INTERLEAVED)
            sums += g * of_a.to(A)
        total = tl.sum(sums, 1)
        at, known = row_of(0, b, B, C) + c, c < C
        if CELL is None:
            tl.store(dd + at, total, known)
        else:
            h, memory = state_at(states_h, states_c, at, known, CELL)
            dh, dc = CELL.output_grad(CELL, h, memory, total)
            if CELL.saves_h:
                if dstates_h is not None:
                    dh += tl.load(dstates_h + at, known, 0.0)
                tl.store(to_h + at, dh, known)
            if CELL.saves_c:
                if dstates_c is not None:
                    dc += tl.load(dstates_c + at, known, 0.0)
                tl.store(to_c + at, dc, known)


@triton.jit(do_not_specialize=["B"])
def recalibrate_bwd_kernel(
    table,  # maps.Table of dout, da, where there was a relu out, and, where wanted, dshortcut; d.. are written
    states_h,  # [B, C]; None where the cell saves none
    states_c,  # [B, C]; None where the cell saves none
    dy,  # [B, C]
    B,
    C,
    CELL: tl.constexpr,  # cells.Cell
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Compute the gradients of both maps."""
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    ADDS: tl.constexpr = len(table.maps) > 3
    A: tl.constexpr = dy.dtype.element_ty
    _, b, begin, end = maps_of_program(B, C, TILES, BACKWARDS=True)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    da, da_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    out, out_stride = None, None
    if len(table.maps) > 2:
        out, out_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    if ADDS:
        dshortcut, dshortcut_stride = map_of(table.maps[3], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        at = row_of(0, b, B, C) + c
        h, memory = state_at(states_h, states_c, at, c < C, CELL)
        shown = CELL.output(CELL, h, memory)
        shift = tl.load(dy + at, c < C, 0.0) / HW
        for p0 in range(0, HW, TILE[1]):
            p = p0 + tl.arange(0, TILE[1])
            there = (c < C)[:, None] & (p < HW)[None, :]
            g = let_through(dout, dout_stride, out, out_stride, c, p, C, HW, A, INTERLEAVED)
            new = g * shown[:, None] + shift[:, None]
            tl.store(tile_of(da, da_stride, c, p, INTERLEAVED), new.to(ELEMENT), there)
            if ADDS:
                tl.store(tile_of(dshortcut, dshortcut_stride, c, p, INTERLEAVED), g.to(ELEMENT), there)


class Shown(NamedTuple):
    """A cell and the state that it shows something of, None where it saves none."""

    cell: Cell
    h: Tensor | None  # [B, C]
    c: Tensor | None  # [B, C]

    def tensors(self) -> dict[str, Any]:
        """Return them by the names that kernels have for them."""
        return {"states_h": self.h, "states_c": self.c, "CELL": self.cell}


def _run(op: str, kernel: Any, lists: tuple[MapList, ...], **args: Any) -> None:
    """Launch a kernel over the pieces of these maps, which all lie alike."""
    maps, piece = table(*lists)
    how, programs = pieces_of(op, lists[0])
    like = lists[0].held[0]
    B, C = like.shape[:2]
    shape = {"B": B, "C": C, "ELEMENT": ELEMENT[like.dtype], "PIECE": piece, "INTERLEAVED": lists[0].interleaved[0]}
    run(kernel, programs, like, how, table=maps, **args, **shape, TILES=how)


def scale_and_add(a: MapList, shortcut: MapList | None, out: MapList, shown: Shown, relu: bool) -> None:
    """Fill out, which may be either of the others, with f(shortcut + a h)."""
    # What streams one map is cut as rescale is.
    op, lists = ("rescale", (a, out)) if shortcut is None else ("recalibrate", (a, out, shortcut))
    _run(op, recalibrate_kernel, lists, **shown.tensors(), RELU=relu)


def _sums(dout: MapList, a: MapList, out: MapList | None, y: Tensor, **args: Any) -> None:
    op, lists = ("gate_gradient", (dout, a)) if out is None else ("shown_gradient", (dout, a, out))
    _run(op, shown_gradient_kernel, lists, **args, A=ELEMENT[y.dtype])


def shown_gradient(dout: MapList, a: MapList, out: MapList | None, y: Tensor) -> Tensor:
    """Return the gradient of what is shown, like y. out: the result of a relu."""
    dd = torch.empty_like(y)
    nothing = dict.fromkeys(("states_h", "states_c", "dstates_h", "dstates_c", "to_h", "to_c", "CELL"))
    _sums(dout, a, out, y, dd=dd, **nothing)
    return dd


def state_gradients(
    dout: MapList, a: MapList, out: MapList | None, y: Tensor, shown: Shown, dstates_h: Tensor | None,
    dstates_c: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the state that is shown, as far as it is saved, with those that arrive from elsewhere."""
    to_h = torch.empty_like(y) if shown.cell.saves_h else None
    to_c = torch.empty_like(y) if shown.cell.saves_c else None
    gradients = {"dstates_h": dstates_h, "dstates_c": dstates_c, "to_h": to_h, "to_c": to_c}
    _sums(dout, a, out, y, dd=None, **shown.tensors(), **gradients)
    return [x for x in (to_h, to_c) if x is not None]


def map_gradients(
    dout: MapList, da: MapList, out: MapList | None, dshortcut: MapList | None, shown: Shown, dy: Tensor
) -> None:
    """Fill da with g h + dy / HW, g being dout, or where there was a relu, with the result out, what that lets through;
    and dshortcut, where it is wanted, with g."""
    lists = [x for x in (dout, da, out, dshortcut) if x is not None]
    op = "rescale" if out is None else "recalibrate_bwd"
    _run(op, recalibrate_bwd_kernel, tuple(lists), **shown.tensors(), dy=dy)
