from __future__ import annotations

from torch import Tensor

from ..cells import PAPER_DSU, Cell, Weights, accumulate_dtype
from .cells import step, unpack_state


def refresh(y: Tensor, state: tuple[Tensor, ...], weights: Weights, *, cell: Cell = PAPER_DSU) -> Tensor:
    """Compute ``d_t = Dyn(y_t, c_T)`` for all t at once, output only (Eq. 6): y [T, B, C] -> d [T, B, C]."""
    y = y.to(accumulate_dtype(y.dtype))
    h, c = unpack_state(state, y[0], cell)
    return step(y, h.expand_as(y), c.expand_as(y), weights, cell)[2]
