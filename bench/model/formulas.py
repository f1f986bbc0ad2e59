"""What an op must move and compute, from its equations alone: the model that measured figures are held against.

Bytes count each tensor once that is read or written. ``again`` are those that the equations want a second time: pooling
has to be over before maps can be rescaled, and sums over pixels before the gradients that hold them. Where a sample
(for a norm, the whole batch) stays in cache, on a GPU on the chip, they cost nothing, the path of one pass; elsewhere
they count, the path of two passes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bench.common import Shape
from bench.ops.work import CELLS, DTYPES
from dla_kernels.attention import filter_width
from dla_kernels.cells import Cell, accumulate_dtype, weight_shapes

PATHS = ("one pass", "two passes")


class Traffic(NamedTuple):
    """Bytes and floating-point operations of one call."""

    read: float
    written: float
    again: float = 0
    flops: float = 0

    def plus(self, *others: Traffic) -> Traffic:
        return Traffic(*map(sum, zip(self, *others)))

    def bytes(self, path: str) -> float:
        """Of one of PATHS."""
        return self.read + self.written + (self.again if path == "two passes" else 0)


class Products(NamedTuple):
    """Operations of a cell's products: for each mean y, for each state h, for each pair of the two."""

    y: int
    h: int
    pair: int

    @classmethod
    def of(cls, cell: Cell, C: int, R: int) -> Products:
        N = cell.num_gates * C
        if cell.projection == "joint":  # W2 follows the sum of both
            return cls(2 * R * C, 2 * R * C, 2 * N * R)
        one = 2 * R * C + 2 * N * R if cell.projection == "split" else 2 * N * C
        return cls(one, one, 0)


def weight_bytes(cell: Cell, shape: Shape, itemsize: int) -> int:
    return itemsize * sum(math.prod(size) for size in weight_shapes(cell, shape.C, shape.R).values())


TAPS = 2 * 9  # operations of a 3x3 filter for a pixel
BACKWARD = 3  # times the products of a forward pass: again, then the gradients of inputs and of weights


def traffic(op: str, which: str, shape: Shape, dtype: str = "fp32") -> Traffic:
    """Of one call of an op in bench/ops/<op>.py; ``which`` is one of bench.ops.work.PASSES."""
    if which == "both":
        return traffic(op, "forward", shape, dtype).plus(traffic(op, "backward", shape, dtype))
    T, B, C, HW, _ = shape
    exact = accumulate_dtype(DTYPES[dtype]).itemsize
    pixels = B * C * HW**2
    M, row = pixels * DTYPES[dtype].itemsize, B * C * exact  # a map; [B, C]
    S, rows = T * M, T * row
    taps, forward = 9 * C * exact, which == "forward"

    if op == "base_step":
        return base_stage(which, shape, dtype)
    cell, K = CELLS.get(op), filter_width(C)
    weights = num_states = 0
    y = h = pair = 0.0
    if cell:
        weights = weight_bytes(cell, shape, exact)
        num_states = len(cell.state_names)
        y, h, pair = (B * n * (1 if forward else BACKWARD) for n in Products.of(cell, C, shape.R))

    if op == "gap":
        return Traffic(S, rows, flops=T * pixels) if forward else Traffic(rows, rows)  # an expanded view
    if op == "rescale":
        return Traffic(S + rows, S, 0, T * pixels) if forward else Traffic(2 * S + rows, S + rows, 0, 3 * T * pixels)
    if op == "scan":
        saved = num_states * rows
        if forward:
            return Traffic(rows + weights, saved, flops=T * (y + h + pair))
        return Traffic(rows + 2 * saved + weights, rows + weights, flops=T * (y + h + pair))
    if op == "refresh":
        state = num_states * row
        if forward:
            return Traffic(rows + state + weights, rows, flops=T * (y + pair) + h)
        return Traffic(2 * rows + state + weights, rows + state + weights, flops=T * (y + pair) + h)
    if op == "layer_update":
        flops, kept = T * (y + h + 2 * pair) + h, (1 + num_states) * rows
        if forward:
            return Traffic(S + weights, S + kept, S, flops + 2 * T * pixels)
        return Traffic(2 * S + kept + weights, S + weights, S, flops + 4 * T * pixels)
    if op == "depthwise":
        if forward:
            return Traffic(M + taps, M + 2 * row, 0, (TAPS + 2) * pixels)
        return Traffic(2 * M + 2 * row + taps, M + taps, 0, 2 * (TAPS + 1) * pixels)
    if op == "attend":
        past = (T - 1) * row
        if forward:
            return Traffic(row + 4 * past, 3 * rows, 0, (4 * K + 5 * T - 2) * B * C)
        return Traffic(row + 4 * past + 3 * rows, row + 4 * past, 0, (12 * K + 17 * T - 6) * B * C)
    if op == "mix":
        if forward:
            return Traffic(S + rows, M, 0, 2 * T * pixels)
        return Traffic(S + M + rows, S + rows, 0, 3 * T * pixels)
    if op == "norm_add":
        return Traffic(2 * M, M, 0, 4 * pixels) if forward else Traffic(2 * M, M, 2 * M, 10 * pixels)
    assert op == "light_step", op
    filters, state = 2 * taps + weights, num_states * row
    flops = 2 * (y + h + pair) + ((2 if forward else 4) * TAPS + 2) * pixels
    if forward:
        return Traffic(2 * M + filters + state, M + 2 * row + state, 2 * M, flops)
    return Traffic(3 * M + filters + 2 * row + 2 * state, 2 * M + filters + state, M, flops)


def base_stage(which: str, shape: Shape, dtype: str) -> Traffic:
    """Of T layers of DLA-B. Each has its value, its mix over all values so far, a scan of its mean, and a refresh of
    the keys and means of the earlier layers."""
    T, B, C, HW, _ = shape
    cell, exact, pixels = CELLS["base_step"], accumulate_dtype(DTYPES[dtype]).itemsize, B * C * HW**2
    weights = weight_bytes(cell, shape, exact)
    row, M = B * C * exact, pixels * DTYPES[dtype].itemsize
    y, h, pair = (B * n for n in Products.of(cell, C, shape.R))
    parts = []
    for t in range(1, T + 1):
        parts += [traffic(op, which, shape._replace(T=t), dtype) for op in ("depthwise", "attend", "mix")]
        refreshed, after = 2 * (t - 1), int(t > 1)  # rows; whether there is anything to refresh
        taken, given = (2 + refreshed + after) * row, (1 + refreshed) * row
        flops = y + h + pair + refreshed * (y + pair) + after * h
        if which == "forward":
            parts.append(Traffic(taken + weights, given, 0, flops))
            continue
        parts.append(Traffic(taken + given + weights, taken + weights, 0, BACKWARD * flops))
        if t < T:  # the values' gradients so far, from the layers behind
            parts.append(Traffic(t * M, 0, 0, t * pixels))
    return Traffic(0, 0).plus(*parts)
