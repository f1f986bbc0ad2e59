from __future__ import annotations

import torch
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
    """Compute ``x + keep BN(o)`` or ``x + keep relu(BN(o))``: maps x and o [B, C, H, W], gamma and beta [C], keep [B].

    With ``moments``, those of o, the batch is normed by its own statistics, and ``running``, the mean and variance
    [C] each, moves towards them by ``momentum``; without, the batch is normed by ``running``.
    """
    dtype = accumulate_dtype(o.dtype)
    mean = var = None
    if moments is None and running is not None:
        mean, var = (r.to(dtype) for r in running)
    normed = F.batch_norm(o.to(dtype), mean, var, gamma.to(dtype), beta.to(dtype), mean is None, eps=eps)
    if relu:
        normed = normed.relu()
    if keep is not None:
        normed = normed * keep.detach().to(dtype)[:, None, None, None]
    out = (x.to(dtype) + normed).to(x.dtype)
    if moments is not None and running is not None:
        move(running, moments, momentum, o.numel() // o.shape[1])
    return out


def move(running: tuple[Tensor, Tensor], moments: Tensor, momentum: float, count: int) -> None:
    """Move the running mean and variance, which is unbiased, towards those of a batch of ``count`` pixels."""
    if count == 0:
        return
    mean, var = moments.detach().unbind()
    with torch.no_grad():
        for own, new in zip(running, (mean, var * (count / max(count - 1, 1)))):
            own.lerp_(new.to(own.dtype), momentum)
