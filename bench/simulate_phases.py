"""Predict what layer_update takes where its cell runs a phase a launch (csrc/cuda/phases.cuh): maps by the bytes that
they move, each product by the tiles that blocks share out."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.simulate import Chip, Problem

TILE, FEW_COLUMNS, FEW_TERMS = 32, 16, 64  # of csrc/cuda/tile_product.h and phases.h
RESIDENT = 2  # blocks of a processor


def products(p: Problem) -> list[tuple[int, int, int, bool]]:
    """Return rows, columns and terms of the products of all phases, and whether columns are channels with all gates."""
    C, R, N, B, rows = p.C, p.R, p.cell.num_gates * p.C, p.B, p.T * p.B
    into, out_of = (R, C, False), (C, R, True)
    if p.forward:
        return [(rows, *into), *[(B, *into), (B, *out_of)] * p.T, (B, *into), (rows, *out_of)]
    back, to_state = (R, N, False), (C, R, False)
    ahead = [(rows, *into), (B, *into), (rows, *out_of), (rows, *back), (rows, *into), (rows, N, R, False)]
    return [*ahead, (B, *to_state), *[(B, *back), (B, *to_state)] * p.T, (rows, *to_state)]


def microseconds(rows: int, columns: int, terms: int, by_gates: bool, p: Problem, chip: Chip) -> float:
    """Return the time of a product: of its rounds of blocks, each of which has so many slabs of terms to multiply."""
    gates = p.cell.num_gates if by_gates else 1
    across, group = ceil(columns / (TILE // gates)), 1
    while across <= FEW_COLUMNS and 2 * group <= 8 and terms // (2 * group) >= FEW_TERMS:
        group *= 2
    blocks = ceil(rows / TILE) * across * group
    of_block = ceil(terms / TILE / group) * TILE**3
    rounds = blocks / (RESIDENT * chip.processors)
    return max(1.0, rounds) * of_block * RESIDENT / chip["phase products"] + chip["phase"]


def predicted(p: Problem, chip: Chip, spared: str = "") -> Counter[str]:
    """Return how the microseconds of a pass are shared out, but for the weights' gradients."""
    found = 1.0 if spared == "second reading" else min(1.0, chip["kept"] * chip.l2 / p.S)
    all_products = products(p)
    launches = len(all_products) + (3 if p.forward else 4)  # over maps, and the phases without a product
    cell = 0.0 if spared == "cell" else sum(microseconds(*product, p, chip) for product in all_products)
    return Counter(
        {
            "pool": (1 if p.forward else 2) * p.S / chip["memory"],
            "rescale": (2 - found) * p.S / chip["memory"],
            "cell": cell,
            "launches": launches * chip["launch"],
        }
    )
