from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..cells import PAPER_DSU, Cell, Weights
from .gap import gap
from .refresh import refresh
from .rescale import rescale
from .scan import scan


def layer_update(
    xs: Sequence[Tensor],
    weights: Weights,
    *,
    cell: Cell = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    inplace: bool = False,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Run one stage: pool, scan, refresh, rescale. T maps -> (T maps, states [T, B, C])."""
    y = gap(xs)
    states = scan(y, weights, cell=cell, state=state)
    d = refresh(y, tuple(s[-1] for s in states), weights, cell=cell)
    return rescale(xs, d, inplace=inplace), states
