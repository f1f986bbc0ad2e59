"""Lists of feature maps: how a kernel is told of them, and what it does to one.

A launch takes T maps of different sizes. Their addresses, sizes and strides are integers among its arguments: T of
each, or one where all are equal. ``entry`` finds that of a layer which is known at run time only. No table has to be
copied to the device, and a CUDA graph keeps its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENT = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over maps of this one, and so of all that is no map."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- the table ----

Words = tuple[int, ...]


class Maps(NamedTuple):
    """T maps: word t of each tuple tells of layer t, a single word of all. All count pieces, a constant number of
    neighbouring elements: multiplied by it, they tell the compiler that it may read whole pieces at once."""

    address: Words
    sample: Words  # stride between samples
    stride: Words  # between channels of a planar map, between pixels of an interleaved one


class Table(NamedTuple):
    """What a kernel is told of its maps. The lists are of the same layers and sizes; which list is which, an op
    says."""

    planes: Words  # 2 HW + interleaved
    maps: tuple[Maps, ...]  # which is which, an op says


ROOM = 8  # where a list may be of any number of layers
_TAG = 1 << 62


def tagged(n: int) -> int:
    """Return n in a form that is always odd and wide, n < 2^61. Triton compiles a kernel anew for an integer that is 1,
    divisible by 16 or wider than 32 bits for the first time."""
    return _TAG + 2 * n + 1


def with_room(words: Words, room: int) -> Words:
    """Return a multiple of `room` words, the last of them again and again: so that fewer kernels are compiled for
    different numbers of layers."""
    return words + words[-1:] * (-len(words) % room)


def of_all(words: Words, room: int) -> Words:
    """Return one word instead of many that are equal; else the same."""
    return words[:1] if len(set(words)) == 1 else with_room(words, room)


def pixel_stride(x: Tensor) -> int:
    """Return the distance between neighbouring pixels if H and W can be walked as one axis, else 0."""
    H, W = x.shape[2:]
    if W == 1:
        return 1 if H == 1 else x.stride(2)
    return x.stride(3) if H == 1 or x.stride(2) == W * x.stride(3) else 0


def fits(x: Tensor, interleaved: bool) -> bool:
    """Return whether kernels can walk the map as an interleaved one, or as a planar one."""
    if interleaved:
        return pixel_stride(x) > 0 and (x.stride(1) == 1 or x.shape[1] == 1)
    return pixel_stride(x) == 1


def is_interleaved(x: Tensor) -> bool:
    """Return how a map is best walked. A single pixel or channel fits both layouts: then the axis that is longer."""
    return fits(x, True) and (x.shape[2] * x.shape[3] == 1 or not fits(x, False))


def walkable(x: Tensor, interleaved: bool) -> Tensor:
    """Return the map itself, or a copy where it lies otherwise (expanded gradients, transposed views)."""
    if fits(x, interleaved):
        return x
    return x.contiguous(memory_format=torch.channels_last if interleaved else torch.contiguous_format)


class MapList:
    """T maps as kernels can walk them, copied where they must be: each in its own layout, in that of the map beside
    it, or all in that of the only one there."""

    def __init__(self, xs: Sequence[Tensor], beside: MapList | None = None) -> None:
        self.given = xs
        self.interleaved = beside.interleaved if beside else [is_interleaved(x) for x in xs]
        if len(self.interleaved) == 1:
            self.interleaved = self.interleaved * len(xs)
        self.held = [walkable(x, last) for x, last in zip(xs, self.interleaved)]

    def empty_like(self) -> MapList:
        """Return maps to be written, laid out as these are walked."""
        return MapList([torch.empty_like(x) for x in self.held], self)

    def words(self, piece: int, room: int) -> Maps:
        """Return what a kernel is told of these maps, in pieces of so many elements."""
        size = piece * self.held[0].element_size()
        strides = [self.row(x, last)[2] for x, last in zip(self.held, self.interleaved)]
        return Maps(
            with_room(tuple(tagged(x.data_ptr() // size) for x in self.held), room),
            of_all(tuple(tagged(x.stride(0) // piece) for x in self.held), room),
            of_all(tuple(tagged(stride // piece) for stride in strides), room),
        )

    @staticmethod
    def row(x: Tensor, interleaved: bool) -> tuple[int, int, int]:
        """Return how many rows of neighbours a sample has, their length, and the stride between them."""
        _, C, H, W = x.shape
        return (H * W, C, pixel_stride(x)) if interleaved else (C, H * W, x.stride(1))

    def largest_piece(self) -> int:
        """Return how many elements, up to 16 bytes, may be read at once: all rows of all maps begin and end at a
        multiple."""
        size = self.held[0].element_size()
        numbers = [16 // size]
        for x, last in zip(self.held, self.interleaved):
            _, length, stride = self.row(x, last)
            numbers += [x.data_ptr() // size, length, stride, x.stride(0)]
        return reduce(gcd, numbers)

    def largest_plane(self) -> int:
        """Return the most pixels that a map has."""
        return max(x.shape[2] * x.shape[3] for x in self.held)

    def as_given(self, model: MapList) -> list[Tensor]:
        """Return these maps, new ones, in the layout of the model's, also of those that had to be copied."""
        return [like_given(new, x) for new, x in zip(self.held, model.given)]


def like_given(new: Tensor, x: Tensor) -> Tensor:
    """Return a new map laid out as torch would make it like x, copied only where it is not yet."""
    if new.stride() == x.stride() or new.stride() == torch.empty_like(x, device="meta").stride():
        return new
    return torch.empty_like(x).copy_(new)


def table(*lists: MapList, room: int = 1, most: int = 16) -> tuple[Table, int]:
    """Return what a kernel is told of these lists, with room for a multiple of so many maps, and the length of a piece,
    `most` elements at most."""
    piece = reduce(gcd, (maps.largest_piece() for maps in lists), most)
    first = lists[0]
    planes = tuple(tagged(2 * x.shape[2] * x.shape[3] + last) for x, last in zip(first.held, first.interleaved))
    return Table(of_all(planes, room), tuple(maps.words(piece, room) for maps in lists)), piece


# ---- on the device ----


@triton.jit
def entry(words, t):
    """Return word t of a tuple, without its tag."""
    n = words[0]
    for i in tl.static_range(1, len(words)):
        n = tl.where(t == i, words[i], n)
    return (n - 4611686018427387904) >> 1


@triton.jit
def row_of(t, b, B, C):
    """Return where [t, b] begins in a tensor [T, B, C]."""
    return (tl.cast(t, tl.int64) * B + b) * C


@triton.jit
def map_of(maps, t, b, ELEMENT: tl.constexpr, PIECE: tl.constexpr):
    """Return where sample b of layer t begins, and the stride of its rows."""
    at = entry(maps.address, t) + b * entry(maps.sample, t)
    BYTES: tl.constexpr = PIECE * ELEMENT.primitive_bitwidth // 8
    x = tl.multiple_of((at * BYTES).to(tl.pointer_type(ELEMENT)), BYTES)
    return x, entry(maps.stride, t) * PIECE


@triton.jit
def tile_of(x, stride, c, p, INTERLEAVED: tl.constexpr):
    """Return pointers [c, p] into a map."""
    if INTERLEAVED:
        return x + c[:, None] + p[None, :] * stride
    else:
        return x + c[:, None] * stride + p[None, :]


@triton.jit
def plane_of(table, t):
    """Return how many pixels the maps of layer t have, and whether they are interleaved."""
    n = entry(table.planes, t)
    return (n >> 1).to(tl.int32), n & 1 == 1


@triton.jit
def pixels_of(table, PIECE: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return HW of maps that all lie alike; of planar ones it is a whole number of pieces, which this tells the
    compiler."""
    HW = (entry(table.planes, 0) >> 1).to(tl.int32)
    return HW if INTERLEAVED else HW // PIECE * PIECE


@triton.jit
def sum_in(
    x, x_stride, y, y_stride, to, begin, end, C, HW,
    INTERLEAVED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum map x, or its product with map y, over the pixels of channels begin .. end, to `to` [C]: of x alone, the
    mean."""
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    A: tl.constexpr = to.dtype.element_ty
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        sums = tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            of_x = tl.load(tile_of(x, x_stride, c, p, INTERLEAVED), there, 0.0)
            if y is None:
                sums += of_x.to(A)
            else:  # both are asked for before the first is used
                of_y = tl.load(tile_of(y, y_stride, c, p, INTERLEAVED), there, 0.0)
                sums += of_x.to(A) * of_y.to(A)
        total = tl.sum(sums, 1)
        tl.store(to + c, total / HW if y is None else total, c < C)


@triton.jit
def scale_in(
    x, x_stride, out, out_stride, d, dy, begin, end, C, HW,
    INTERLEAVED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write out = x d + dy / HW for channels begin .. end; dy may be None."""
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        scale = tl.load(d + c, c < C, 0.0)
        shift = scale if dy is None else tl.load(dy + c, c < C, 0.0) / HW
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            there = (c < C)[:, None] & (p < HW)[None, :]
            new = tl.load(tile_of(x, x_stride, c, p, INTERLEAVED), there, 0.0).to(scale.dtype) * scale[:, None]
            if dy is not None:
                new += shift[:, None]
            tl.store(tile_of(out, out_stride, c, p, INTERLEAVED), new.to(out.dtype.element_ty), there)


# A planar map's plane is a whole number of pieces, which HW // PIECE * PIECE tells the compiler. A tuple out of TILES
# becomes a constant of its own before it is passed on: Triton 3.6 takes it no other way.


@triton.jit
def pool(table, y, t, b, B, C, begin, end, ELEMENT: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr):
    """Fill y[t, b] with the mean of map 0, for channels begin .. end."""
    HW, interleaved = plane_of(table, t)
    x, stride = map_of(table.maps[0], t, b, ELEMENT, PIECE)
    y += row_of(t, b, B, C)
    INTERLEAVED: tl.constexpr = TILES.interleaved
    PLANAR: tl.constexpr = TILES.planar
    if interleaved:
        sum_in(x, stride, None, stride, y, begin, end, C, HW, True, INTERLEAVED)
    else:
        sum_in(x, stride, None, stride, y, begin, end, C, HW // PIECE * PIECE, False, PLANAR)


@triton.jit
def gate_gradient(
    table, dd, t, b, B, C, begin, end, ELEMENT: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """Fill dd[t, b] with the sum over pixels of map 0 times map 1, dout and x, for channels begin .. end."""
    HW, interleaved = plane_of(table, t)
    dout, dout_stride = map_of(table.maps[0], t, b, ELEMENT, PIECE)
    x, x_stride = map_of(table.maps[1], t, b, ELEMENT, PIECE)
    dd += row_of(t, b, B, C)
    INTERLEAVED: tl.constexpr = TILES.interleaved
    PLANAR: tl.constexpr = TILES.planar
    if interleaved:
        sum_in(dout, dout_stride, x, x_stride, dd, begin, end, C, HW, True, INTERLEAVED)
    else:
        sum_in(dout, dout_stride, x, x_stride, dd, begin, end, C, HW // PIECE * PIECE, False, PLANAR)


@triton.jit
def scale(
    table, TO: tl.constexpr, d, dy, t, b, B, C, begin, end,
    ELEMENT: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write map TO = map 0 d[t, b] + dy[t, b] / HW, for channels begin .. end; dy may be None."""
    HW, interleaved = plane_of(table, t)
    x, x_stride = map_of(table.maps[0], t, b, ELEMENT, PIECE)
    out, out_stride = map_of(table.maps[TO], t, b, ELEMENT, PIECE)
    d += row_of(t, b, B, C)
    if dy is not None:
        dy += row_of(t, b, B, C)
    INTERLEAVED: tl.constexpr = TILES.interleaved
    PLANAR: tl.constexpr = TILES.planar
    if interleaved:
        scale_in(x, x_stride, out, out_stride, d, dy, begin, end, C, HW, True, INTERLEAVED)
    else:
        scale_in(x, x_stride, out, out_stride, d, dy, begin, end, C, HW // PIECE * PIECE, False, PLANAR)
