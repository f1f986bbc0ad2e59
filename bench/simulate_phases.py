"""Predict what an op takes whose cell runs a phase a launch (csrc/cuda/phases.cuh): maps by their bytes and the
instructions of their loops, each product by the tiles that blocks share out."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.simulate import Chip, Phase, Problem

TILE, FEW_COLUMNS, FEW_TERMS = 32, 16, 64  # of csrc/cuda/tile_product.h and phases.h
RESIDENT = 2  # blocks of a processor


def products(p: Problem) -> list[tuple[int, int, int, bool]]:
    """Return rows, columns and terms of the products of all phases, and whether columns are channels with all gates."""
    C, R, N, B, rows = p.C, p.R, p.gates * p.C, p.B, p.T * p.B
    into, out_of = (R, C, False), (C, R, True)
    back, to_y = (R, N, False), (C, R, False)
    if not p.recurs:  # a bottleneck, there and back
        return [(B, *into), (B, *out_of)] + ([] if p.forward else [(B, *back), (B, *to_y)])
    steps = 1 if p.op == "light_step" else p.T
    refreshed = {"layer_update": rows, "light_step": B, "recalibrate": 0}[p.op]
    once = B if refreshed else 0  # what refreshed layers share
    of_y = rows if p.cell.projection == "split" else 0  # which has a bottleneck of its own there
    if p.forward:
        scan = [(rows, *into), (of_y, N, R, False), *[(B, *into), (B, *out_of)] * steps]
        return [*scan, (once, *into), (refreshed, *out_of)]
    refresh = [(once, *into), (refreshed, *out_of), (refreshed, *back)]
    ahead = [(rows, *into), (of_y, N, R, False), *refresh, (steps * B, *into), (steps * B, N, R, False)]
    return [*ahead, (once, *to_y), *[(B, *back), (B, *to_y)] * steps, (of_y, *back), (rows, *to_y)]


def streaming(phase: Phase, chip: Chip) -> float:
    """Return the time of a launch over maps that all of the chip shares."""
    bytes_ = phase.reads * (1 - phase.found) + phase.writes
    warps = phase.loop.instructions * phase.reads / phase.loop.moved / 32
    return max(bytes_ / chip["memory"], warps / (chip["issue"] * chip.processors))


def microseconds(rows: int, columns: int, terms: int, by_gates: bool, p: Problem, chip: Chip) -> float:
    """Return the time of a product: of its rounds of blocks, each of which has so many slabs of terms to multiply."""
    gates = p.gates if by_gates else 1
    across, group = ceil(columns / (TILE // gates)), 1
    while across <= FEW_COLUMNS and 2 * group <= 8 and terms // (2 * group) >= FEW_TERMS:
        group *= 2
    blocks = ceil(rows / TILE) * across * group
    of_block = ceil(terms / TILE / group) * TILE**3
    rounds = blocks / (RESIDENT * chip.processors)
    return max(1.0, rounds) * of_block * RESIDENT / chip["phase products"] + chip["phase"]


def predicted(p: Problem, chip: Chip, over_maps: list[Phase], spared: str = "") -> Counter[str]:
    """Return how the microseconds of a pass are shared out, but for the weights' gradients. The phases over maps have
    all of them."""
    all_products = [product for product in products(p) if product[0] > 0]
    alone = {"squeeze": 0, "light": 1}.get(p.cell.projection, 1 if p.forward else 2)  # without a product
    launches = len(all_products) + len(over_maps) + alone
    cell = 0.0 if spared == "cell" else sum(microseconds(*product, p, chip) for product in all_products)
    maps = {phase.name: streaming(phase, chip) for phase in over_maps}
    return Counter(maps | {"cell": cell, "launches": launches * chip["launch"]})
