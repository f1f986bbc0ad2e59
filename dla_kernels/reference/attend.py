from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cells import accumulate_dtype
from .heads import across_channels, per_channel, shares


def attend(
    y: Tensor, q: Tensor, k: Tensor, past: Sequence[Tensor] = (), *, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``coef_m = softmax_m(q . k_m / sqrt(D)) scale_m`` over M layers before and this one: y [B, C] and
    q, k [K] -> coef, and keys and scale with this layer's own, all [M + 1, B, C].

    past: () | (keys, scale) | (keys, scale, d): [M, B, C] each, refreshed first by d [2 M, B, C] where there is one.
    """
    dtype = accumulate_dtype(y.dtype)
    y, past = y.to(dtype), [p.to(dtype) for p in past]
    keys, scale = across_channels(y, k)[None], torch.ones_like(y)[None]
    if past:
        before = [*past[:2]]
        if len(past) == 3:
            before = [p * d for p, d in zip(before, past[2].chunk(2))]
        keys, scale = torch.cat([before[0], keys]), torch.cat([before[1], scale])
    return per_channel(shares(y, q, keys, heads), y.shape[1]) * scale, keys, scale
