"""What is left of each layer in a sum that goes from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unrolled(own: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
    """Return what layer t has of layer m, where each layer multiplies what the one before had and adds its own:
    ``a[t, t] = own_t`` and ``a[t, m] = kept_t a[t - 1, m]``, zero for m > t.

    own: T rows [B, C].
    kept: T factors, one for all layers before, [B, C], or one for each, [t, B, C]; the first is not looked at.
    Returns [T, T, B, C].

    >>> unrolled([torch.full((1, 1), 3.0)] * 3, [torch.full((1, 1), 0.5)] * 3)[2].flatten()
    tensor([0.7500, 1.5000, 3.0000])
    """
    rows = [own[0][None]]
    for new, factor in zip(own[1:], kept[1:]):
        rows.append(torch.cat([factor * rows[-1], new[None]]))
    return square_of(rows)


def square_of(rows: Sequence[Tensor]) -> Tensor:
    """Return a square of rows that have one entry more each, [1, ...] to [T, ...], with zeros behind them."""
    T = len(rows)
    return torch.stack([torch.cat([row, row.new_zeros((T - len(row), *row.shape[1:]))]) for row in rows])
