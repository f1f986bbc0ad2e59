from __future__ import annotations

import torch
from torch import Tensor

from ..cells import accumulate_dtype
from .heads import depthwise as convolved


def depthwise(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the value of layer attention: x [B, C, H, W] and v [C, 1, 3, 3] -> dwconv(x; v), and y [2, B, C], the
    means of x and of the value."""
    exact = x.to(accumulate_dtype(x.dtype))
    value = convolved(exact, v).to(x.dtype)
    return value, torch.stack([exact.mean((2, 3)), value.to(exact.dtype).mean((2, 3))])
