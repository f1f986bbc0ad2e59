from __future__ import annotations

from torch import Tensor

from ..cells import Cell, Weights, accumulate_dtype
from .cells import step, unpack_state
from .gap import gap


def recalibrate(
    a: Tensor,
    weights: Weights,
    *,
    cell: Cell,
    state: tuple[Tensor, ...] | None = None,
    shortcut: Tensor | None = None,
    relu: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute ``shortcut + a h``, h being what the cell shows after the mean of a, and its relu where that is wanted:
    maps [B, C, H, W], state [B, C] -> a map, the new state."""
    y = gap([a])[0]
    h, c, shown = step(y, *unpack_state(state, y, cell), weights, cell)
    out = a.to(accumulate_dtype(a.dtype)) * shown[:, :, None, None]
    if shortcut is not None:
        out = out + shortcut.to(out.dtype)
    out = (out.relu() if relu else out).to(a.dtype)
    if inplace:
        out = (a if shortcut is None else shortcut).copy_(out)
    kept = {"h": h, "c": c}
    return out, tuple(kept[name] for name in cell.state_names)
