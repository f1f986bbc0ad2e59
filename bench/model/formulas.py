"""Count what an op must move and compute, from its equations alone; measured figures are held against that. Each op
states its own formulas in bench/ops/, in terms of the amounts that are defined here.

Bytes count each tensor once that is read or written. ``again`` are those that the equations want a second time: pooling
has to be over before maps can be rescaled, and sums over pixels before the gradients that hold them. Where a sample
(for a norm, the whole batch) stays in cache, on a GPU on the chip, they cost nothing: that is the path of one pass.
Elsewhere they count: that is the path of two passes.
"""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

from bench.common import Shape
from bench.ops.work import CELLS, DTYPES
from dla_kernels.attention import filter_width
from dla_kernels.cells import Cell, accumulate_dtype, weight_shapes

PATHS = ("one pass", "two passes")


class Traffic(NamedTuple):
    """The bytes that one call moves, and the floating-point operations that it computes."""

    read: float
    written: float
    again: float = 0
    flops: float = 0

    def plus(self, *others: Traffic) -> Traffic:
        return Traffic(*map(sum, zip(self, *others)))

    def bytes(self, path: str) -> float:
        """Return the bytes that are moved on one of PATHS."""
        return self.read + self.written + (self.again if path == "two passes" else 0)


class Products(NamedTuple):
    """The operations that a cell's products take: for each mean y, for each state h, for each pair of the two."""

    y: int
    h: int
    pair: int

    @classmethod
    def of(cls, cell: Cell, C: int, R: int) -> Products:
        N = cell.num_gates * C
        if cell.projection == "joint":  # W2 follows the sum of both
            return cls(2 * R * C, 2 * R * C, 2 * N * R)
        one = 2 * R * C + 2 * N * R if cell.projection in ("split", "squeeze") else 2 * N * C
        return cls(one, one if cell.remembers else 0, 0)


def weight_bytes(cell: Cell, shape: Shape, itemsize: int) -> int:
    return itemsize * sum(math.prod(size) for size in weight_shapes(cell, shape.C, shape.R).values())


TAPS = 2 * 9  # operations of a 3x3 filter for a pixel
BACKWARD = 3  # times a forward pass's products: once for these again, once each for the gradients of inputs and weights


class Amounts(NamedTuple):
    """The amounts that formulas of ops are made of: bytes, elements and operations of one call at a shape."""

    T: int
    B: int
    C: int
    K: int  # taps of a filter over channels
    pixels: int  # of a map, B C HW
    M: int  # bytes of a map
    S: int  # bytes of all maps, T M
    row: int  # bytes of [B, C]
    rows: int  # bytes of [T, B, C]
    filters: int  # bytes of [C, 1, 3, 3]
    weights: int  # bytes of the cell's weights
    states: int  # how many states the cell has
    products: Products  # operations of the cell's products for all samples

    @classmethod
    def of(cls, shape: Shape, dtype: str, cell: Cell | None) -> Amounts:
        T, B, C, HW, _ = shape
        itemsize, exact = DTYPES[dtype].itemsize, accumulate_dtype(DTYPES[dtype]).itemsize
        pixels = B * C * HW**2
        M, row = pixels * itemsize, B * C * exact
        weights, states, products = 0, 0, Products(0, 0, 0)
        if cell:
            weights, states = weight_bytes(cell, shape, exact), len(cell.state_names)
            products = Products(*(B * n for n in Products.of(cell, C, shape.R)))
        sizes = filter_width(C), pixels, M, T * M, row, T * row, 9 * C * exact
        return cls(T, B, C, *sizes, weights, states, products)


def traffic(op: str, which: str, shape: Shape, dtype: str = "fp32") -> Traffic:
    """Return what one call of an op takes, as its file in bench/ops/ says; ``which``: one of bench.ops.work.PASSES."""
    if which == "both":
        return traffic(op, "forward", shape, dtype).plus(traffic(op, "backward", shape, dtype))
    stated = importlib.import_module(f"bench.ops.{op}").traffic
    return stated(Amounts.of(shape, dtype, CELLS.get(op)), which == "forward")
