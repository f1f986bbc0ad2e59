"""Weight gradients: products g^T x over all rows (layer, sample), every one of a backward pass in one launch.

Where tiles of the results are too few to fill a chip, several programs share one, each with its part of the rows.
The one that finishes last adds up all parts in their order: nobody waits, and the bits are always the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cell_call import CellCall
from .launch import precision, run
from .maps import ELEMENT, Words, entry, tagged
from .recurrence_bwd import Factors
from .tiles import Tiles, between

ENOUGH_PROGRAMS = 512
FEWEST_ROWS = 256  # of one program, where it shares a tile
NO_COUNTERS: dict[str, Any] = {"arrived": None, "COUNT": 0}  # for a backward kernel without weights


class Product(NamedTuple):
    """A product to [N, K] = g [rows, N]^T x [rows, K], with the column sums of g to a bias. x may have fewer rows and
    then begins again; `to` may be columns of a wider tensor."""

    to: Tensor
    bias: Tensor | None
    g: Tensor
    x: Tensor


class Products(NamedTuple):
    """All products as tagged integers, one word per product."""

    to: Words
    ldto: Words
    bias: Words  # 0 for none
    g: Words
    x: Words
    rows: Words
    x_rows: Words
    N: Words
    K: Words
    first: Words  # program


@triton.jit(do_not_specialize=["splits", "rows_of_split"])
def weight_gradients_kernel(
    p,  # Products
    parts,  # [programs, TILE TILE + TILE] scratch: each one's sums, and of the bias; empty where nothing is split
    arrived,  # [programs] int32, zeros: how many programs are done with a tile, at its first one; empty as parts
    splits,  # programs that share a tile
    rows_of_split,  # rows of each
    A: tl.constexpr,  # dtype of all factors and results
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    """Compute a tile of one of the products, or one of the parts of its sums."""
    TILE: tl.constexpr = TILES.columns
    ROWS: tl.constexpr = TILES.rows
    BIAS: tl.constexpr = TILE * TILE  # where the sums of the bias begin in a part
    PART: tl.constexpr = BIAS + TILE
    program = tl.program_id(0)
    which = 0
    for i in tl.static_range(1, len(p.first)):
        which += (program >= entry(p.first, i)).to(tl.int32)
    N, K, rows = entry(p.N, which), entry(p.K, which), entry(p.rows, which)
    g = entry(p.g, which).to(tl.pointer_type(A))
    x = entry(p.x, which).to(tl.pointer_type(A))
    tile = (program - entry(p.first, which)) // splits
    part = (program - entry(p.first, which)) % splits
    across = tl.cdiv(K, TILE)
    n = tile // across * TILE + tl.arange(0, TILE)
    k = tile % across * TILE + tl.arange(0, TILE)

    sums = tl.zeros([TILE, TILE], A) if TILES.dots else tl.zeros([ROWS, TILE, TILE], A)
    of_bias = tl.zeros([TILE], A)
    for r0 in range(part * rows_of_split, tl.minimum(rows, (part + 1) * rows_of_split), TILES.rows):
        r = r0 + tl.arange(0, TILES.rows)
        left = tl.load(g + r[:, None] * N + n[None, :], (r < rows)[:, None] & (n < N)[None, :], 0.0)
        at = r % entry(p.x_rows, which)
        right = tl.load(x + at[:, None] * K + k[None, :], (r < rows)[:, None] & (k < K)[None, :], 0.0)
        if TILES.dots:
            sums = tl.dot(tl.trans(left), right, sums, input_precision=PRECISION, out_dtype=A)
        else:
            sums += left[:, :, None] * right[:, None, :]
        of_bias += tl.sum(left, 0)
    if not TILES.dots:
        sums = tl.sum(sums, 0)

    cell = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    if splits == 1:
        store_result(p, which, sums, of_bias, n, k, N, K, tile % across == 0, A)
    else:
        mine = parts + program.to(tl.int64) * PART
        tl.store(mine + cell, sums)
        tl.store(mine + BIAS + tl.arange(0, TILE), of_bias)
        tl.debug_barrier()
        if tl.atomic_add(arrived + (program - part), 1) == splits - 1:
            sums = tl.zeros([TILE, TILE], A)
            of_bias = tl.zeros([TILE], A)
            for each in range(0, splits):
                theirs = parts + (program - part + each) * PART
                sums += tl.load(theirs + cell, cache_modifier=".cg")
                of_bias += tl.load(theirs + BIAS + tl.arange(0, TILE), cache_modifier=".cg")
            store_result(p, which, sums, of_bias, n, k, N, K, tile % across == 0, A)


@triton.jit
def clear(arrived, COUNT, BLOCK: tl.constexpr = 1024):
    """Set the counters of the launch to come to zero: program 0 of the one before does."""
    if tl.program_id(0) == 0:
        for first in range(0, COUNT, BLOCK):
            i = first + tl.arange(0, BLOCK)
            tl.store(arrived + i, tl.zeros([BLOCK], tl.int32), i < COUNT)


@triton.jit
def store_result(p, which, sums, of_bias, n, k, N, K, leftmost, A: tl.constexpr):
    """Store a tile of a product where it belongs, and, of the leftmost tiles, the sums of the bias."""
    to = entry(p.to, which).to(tl.pointer_type(A))
    tl.store(to + n[:, None] * entry(p.ldto, which) + k[None, :], sums, (n < N)[:, None] & (k < K)[None, :])
    bias = entry(p.bias, which)
    if (bias != 0) & leftmost:
        tl.store(bias.to(tl.pointer_type(A)) + n, of_bias, n < N)


def products_of(
    r: CellCall, f: Factors, y: Tensor, dw: list[Tensor], has_refresh: bool, has_scan: bool
) -> list[Product]:
    """Return the products of each weight's gradient. Factors hold the refresh's rows, the scan's, and then what the
    refresh sent to W1h h_T."""
    T, C = r.T, r.C
    own = slice(0 if has_refresh else T, 2 * T if has_scan else T)
    with_h = slice(T if has_scan else 2 * T, 2 * T + 1 if has_refresh else 2 * T)
    h = f.h[: T + has_refresh if has_scan else 1]
    if r.projection == "joint":
        return [
            Product(dw[0][:, :C], None, f.ds[with_h], h),
            Product(dw[0][:, C:], None, f.ds[own], y),
            Product(dw[1], dw[2], f.da[own], f.u[own]),
        ]
    if r.projection == "split":
        return [
            Product(dw[0], dw[1], f.dsy, y),
            Product(dw[2], dw[3], f.da[own], f.uy),
            Product(dw[4], dw[5], f.ds[with_h], h),
            Product(dw[6], dw[7], f.da[own], f.u[own]),
        ]
    return [
        Product(dw[0], dw[1], f.da[own], y),
        Product(dw[2], dw[3], f.da[with_h], h),
    ]


class Gradients:
    """The gradients of all weights of a backward pass. Made before its kernel runs, which clears the counters; computed
    after it."""

    def __init__(self, how: Tiles, y: Tensor, dweights: list[Tensor], products: list[Product]) -> None:
        self.how, self.like, self.dweights, self.products = how, y, dweights, products
        side = how.columns
        tiles = [triton.cdiv(N, side) * triton.cdiv(K, side) for N, K in map(_sizes, self.products)]
        rows = max(p.g[..., 0].numel() for p in self.products)
        self.splits = between(1, triton.cdiv(rows, FEWEST_ROWS), max(1, ENOUGH_PROGRAMS // sum(tiles)))
        self.rows_of_split = triton.cdiv(triton.cdiv(rows, self.splits), how.rows) * how.rows
        self.first = [sum(tiles[:i]) * self.splits for i in range(len(tiles))]
        self.programs = sum(tiles) * self.splits
        sharing = self.programs if self.splits > 1 else 0
        self.parts = y.new_empty(sharing * (side + 1) * side)
        self.arrived = torch.empty(sharing, dtype=torch.int32, device=y.device)
        # What the backward kernel is told, which is to clear them.
        self.counters = {"arrived": self.arrived, "COUNT": sharing}

    def clear(self) -> None:
        """Clear the counters, where no kernel does."""
        self.arrived.zero_()

    def compute(self) -> list[Tensor]:
        """Launch, once the backward kernel has filled the factors, and return the gradients in the order of the
        weights."""

        def words(numbers: Iterable[int]) -> Words:
            return tuple(map(tagged, numbers))

        given = Products(
            to=words(p.to.data_ptr() for p in self.products),
            ldto=words(p.to.stride(0) for p in self.products),
            bias=words(0 if p.bias is None else p.bias.data_ptr() for p in self.products),
            g=words(p.g.data_ptr() for p in self.products),
            x=words(p.x.data_ptr() for p in self.products),
            rows=words(p.g[..., 0].numel() for p in self.products),
            x_rows=words(p.x[..., 0].numel() for p in self.products),
            N=words(_sizes(p)[0] for p in self.products),
            K=words(_sizes(p)[1] for p in self.products),
            first=words(self.first),
        )
        run(
            weight_gradients_kernel,
            self.programs,
            self.like,
            self.how,
            p=given,
            parts=self.parts,
            arrived=self.arrived,
            splits=self.splits,
            rows_of_split=self.rows_of_split,
            A=ELEMENT[self.like.dtype],
            TILES=self.how,
            PRECISION=precision(),
        )
        return self.dweights


class WeightGradients(Gradients):
    """The same of a cell, from the factors that its backward pass leaves."""

    def __init__(self, r: CellCall, f: Factors, y: Tensor, *, has_refresh: bool, has_scan: bool) -> None:
        dweights = [torch.empty_like(w) for w in r.given]
        super().__init__(r.tiles, y, dweights, products_of(r, f, y, dweights, has_refresh, has_scan))


def _sizes(p: Product) -> tuple[int, int]:
    """Return N and K, what the result of a product has of rows and columns."""
    return p.g.shape[-1], p.x.shape[-1]
