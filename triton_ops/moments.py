"""Mean and biased variance of each channel over batch and pixels: of every lane of a tile by Welford's updates, then
of the plane and of the batch by Chan's. No difference of large sums, which would cancel, and a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import run
from .tiles import Tiles


@triton.jit
def observe(mean, m2, o, there, n):
    """Return mean and m2, the sum of squares around it, of each lane, now with o, the n-th value of those that are
    there."""
    away = tl.where(there, o - mean, 0.0)
    mean += away * (1.0 / tl.cast(n, o.dtype))
    return mean, m2 + away * (o - mean)


@triton.jit
def taken_by_lanes(length, LANES: tl.constexpr):
    """Return how many of so many each lane takes, if they take turns: [lane]."""
    return (length - tl.arange(0, LANES) + LANES - 1) // LANES


@triton.jit
def store_plane(planes, mean, m2, count, c, b, B, C, HW):
    """Fill planes[:, b, c] with mean and m2 of channels c, from lanes [c, lane] that each saw `count` [lane] of HW
    pixels."""
    count = count.to(mean.dtype)[None, :]
    total = tl.sum(mean * count, 1) / HW
    away = mean - total[:, None]
    mean_at = planes + tl.cast(b, tl.int64) * C + c
    tl.store(mean_at, total, c < C)
    m2_at = mean_at + tl.cast(B, tl.int64) * C
    tl.store(m2_at, tl.sum(m2 + count * away * away, 1), c < C)


@triton.jit(do_not_specialize=["B", "HW"])
def moments_kernel(
    planes,  # [2, B, C] the mean of each plane, and the sum of squares around it
    moments,  # [2, C] mean and biased variance; written
    B,
    C,
    HW,
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Put the planes of all samples together, for a few channels in each program."""
    ROWS: tl.constexpr = TILES.rows
    COLUMNS: tl.constexpr = TILES.columns
    A: tl.constexpr = moments.dtype.element_ty
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], A)
    for b0 in range(0, B, ROWS):
        b = (b0 + tl.arange(0, ROWS)).to(tl.int64)
        sums += tl.load(planes + b[:, None] * C + c[None, :], (b < B)[:, None] & (c < C)[None, :], 0.0)
    mean = tl.sum(sums, 0) / B
    sums = tl.zeros([ROWS, COLUMNS], A)
    for b0 in range(0, B, ROWS):
        b = (b0 + tl.arange(0, ROWS)).to(tl.int64)
        mean_at = planes + b[:, None] * C + c[None, :]
        there = (b < B)[:, None] & (c < C)[None, :]
        away = tl.where(there, tl.load(mean_at, there, 0.0) - mean[None, :], 0.0)
        m2_at = mean_at + tl.cast(B, tl.int64) * C
        sums += tl.load(m2_at, there, 0.0) + away * away * HW
    tl.store(moments + c, mean, c < C)
    var = moments + C
    tl.store(var + c, tl.sum(sums, 0) / B / HW, c < C)


class Moments:
    """The moments of a map [B, C, H, W], if they are wanted. The kernel that writes the map fills ``planes`` on the
    way."""

    def __init__(self, o: Tensor, wanted: bool, y: Tensor) -> None:
        self.o = o
        self.planes = y.new_empty((2, *o.shape[:2])) if wanted else None  # [2, B, C]

    def compute(self, how: Tiles) -> list[Tensor]:
        """Return [moments], [2, C], once the map is written; [] where they are not wanted."""
        if self.planes is None:
            return []
        B, C, H, W = self.o.shape
        moments = self.planes.new_empty((2, C))
        programs = triton.cdiv(C, how.columns)
        run(
            moments_kernel,
            programs,
            self.o,
            how,
            planes=self.planes,
            moments=moments,
            B=B,
            C=C,
            HW=H * W,
            TILES=how,
        )
        return [moments]
