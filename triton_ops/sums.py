"""Sums over the batch of what every sample has computed for itself: always in the same order."""

from __future__ import annotations

from itertools import accumulate

import triton
import triton.language as tl
from torch import Tensor

from .launch import run
from .maps import entry, tagged
from .tiles import Tiles


@triton.jit(do_not_specialize=["B"])
def sums_kernel(
    parts,  # [B, P]
    to,  # a tuple of tensors, P numbers in all; written
    first,  # tagged integers: which of the P numbers each begins with, and P
    B,
    P,
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Sum a few columns of parts over the batch, and store each where it belongs."""
    ROWS: tl.constexpr = TILES.rows
    COLUMNS: tl.constexpr = TILES.columns
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    for b0 in range(0, B, ROWS):
        b = b0 + tl.arange(0, ROWS)
        at = parts + b.to(tl.int64)[:, None] * P + n[None, :]
        sums += tl.load(at, (b < B)[:, None] & (n < P)[None, :], 0.0)
    total = tl.sum(sums, 0)
    for i in tl.static_range(len(to)):
        begin, end = entry(first, i), entry(first, i + 1)
        tl.store(to[i] + (n - begin), total, (n >= begin) & (n < end))


def sum_samples(parts: Tensor, to: list[Tensor], how: Tiles) -> None:
    """Sum parts [B, P] over the batch, and give the P numbers to the tensors of ``to``, one after the other."""
    B, P = parts.shape
    first = tuple(map(tagged, accumulate((x.numel() for x in to), initial=0)))
    programs = triton.cdiv(P, how.columns)
    run(sums_kernel, programs, parts, how, parts=parts, to=tuple(to), first=first, B=B, P=P, TILES=how)
