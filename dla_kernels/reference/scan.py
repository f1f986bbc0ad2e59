from __future__ import annotations

import torch
from torch import Tensor

from ..cells import PAPER_DSU, Cell, Weights, accumulate_dtype
from .cells import step, unpack_state


def scan(
    y: Tensor, weights: Weights, *, cell: Cell = PAPER_DSU, state: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """Compute ``c_t = Dyn(y_t, c_{t-1})`` for t = 1..T (Eq. 5): y [T, B, C] -> states, each [T, B, C]."""
    y = y.to(accumulate_dtype(y.dtype))
    h, c = unpack_state(state, y[0], cell)
    hs, cs = [], []
    for y_t in y:
        h, c, _ = step(y_t, h, c, weights, cell)
        hs.append(h)
        cs.append(c)
    kept = {"h": hs, "c": cs}
    return tuple(torch.stack(kept[name]) for name in cell.state_names)
