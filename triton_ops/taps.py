"""a_c = sum over k of taps_k y_(c + k - K // 2), a filter over the channels of y, off which eca shows sig(a)"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .cells import GATE
from .checks import check_taps
from .heads import across_channels, tap_gradients
from .launch import run
from .maps import row_of
from .products import own_columns
from .sums import sum_samples
from .tiles import tiles


@triton.jit(do_not_specialize=["K", "B"])
def taps_kernel(
    y,  # [B, C]
    taps,  # [K]
    a,  # [B, C] written
    K,
    B,
    C,
    TILES: tl.constexpr,  # tiles.Tiles
):
    row = row_of(0, tl.program_id(0), B, C)
    begin, end = own_columns(C, TILES.channels)
    for c0 in range(begin, end, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        tl.store(a + row + c, across_channels(y + row, taps, K, c, c < C, C), c < C)


@triton.jit(do_not_specialize=["K", "B"])
def taps_bwd_kernel(
    y,  # [B, C]
    taps,  # [K]
    a,  # [B, C] written, as the forward pass has it
    dd,  # [B, C] gradient of what is read off a
    da,  # [B, C] scratch
    dy,  # [B, C] written
    dtaps,  # [B, K] of each sample; written
    K,
    B,
    C,
    CELL: tl.constexpr,  # cells.Cell
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Send the gradient of one sample back."""
    b = tl.program_id(0)
    row = row_of(0, b, B, C)
    y, a, dd, da, dy = y + row, a + row, dd + row, da + row, dy + row
    for c0 in range(0, C, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        of_a = across_channels(y, taps, K, c, c < C, C)
        _, to_a = CELL.output_grad(CELL, of_a, of_a, tl.load(dd + c, c < C, 0.0))
        tl.store(a + c, of_a, c < C)
        tl.store(da + c, to_a, c < C)
    tl.debug_barrier()  # other threads read them
    for c0 in range(0, C, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        tl.store(dy + c, across_channels(da, taps, K, c, c < C, C, True), c < C)
    own = dtaps + row_of(0, b, B, K)
    tap_gradients(own, da, y, K, C, TILES)


class Filtering:
    """The filter of a call, which remembers nothing."""

    remembers = None

    def __init__(self, op: str, weights: list[Tensor], like: Tensor) -> None:
        check_taps(weights, like)
        B, C = like.shape[:2]
        self.taps = weights[0].contiguous()
        self.like, self.tiles = like, tiles(op, C, 0, 0, self.taps.dtype)
        self.made = self.taps.new_empty((B, C))
        self.shape = {"K": self.taps.numel(), "B": B, "C": C, "TILES": self.tiles}

    def forward(self, y: Tensor, states: list[Tensor]) -> None:
        """Fill a, which is what is made of y."""
        B, C = self.made.shape
        programs = B, triton.cdiv(C, self.tiles.channels)
        run(taps_kernel, programs, self.like, self.tiles, y=y, taps=self.taps, a=self.made, **self.shape)

    def backward(
        self, y: Tensor, dd: Tensor | None, states: list[Tensor], dstates: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the gradients of y, of the taps and of no state, from dd of what is read off a; and fill a again."""
        B, _ = self.made.shape
        da, dy = self.made.new_empty(self.made.shape), self.made.new_empty(self.made.shape)
        parts, dtaps = self.made.new_empty((B, self.taps.numel())), self.taps.new_empty(self.taps.shape)
        run(
            taps_bwd_kernel,
            B,
            self.like,
            self.tiles,
            y=y,
            taps=self.taps,
            a=self.made,
            dd=dd,
            da=da,
            dy=dy,
            dtaps=parts,
            CELL=GATE,
            **self.shape,
        )
        sum_samples(parts, [dtaps], self.tiles)
        return dy, [dtaps], []
