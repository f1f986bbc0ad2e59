from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..cells import accumulate_dtype


def norm_add(
    x: Tensor,
    o: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running: tuple[Tensor, Tensor] | None,
    *,
    moments: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    keep: Tensor | None = None,
) -> Tensor:
    """``x + keep BN(o)`` or ``x + keep relu(BN(o))``: maps x and o [B, C, H, W], gamma and beta [C], keep [B].

    With ``moments``, those of o, the batch is normed by its own statistics, and ``running``, the mean and variance
    [C] each, moves towards them by ``momentum``; without, by ``running``.
    """
    dtype = accumulate_dtype(o.dtype)
    mean, var = running if running is not None else (None, None)
    normed = F.batch_norm(
        o.to(dtype), mean, var, gamma.to(dtype), beta.to(dtype), moments is not None, momentum, eps
    )
    if relu:
        normed = normed.relu()
    if keep is not None:
        normed = normed * keep.to(dtype)[:, None, None, None]
    return (x.to(dtype) + normed).to(x.dtype)
