from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cells import accumulate_dtype


def gap(xs: Sequence[Tensor]) -> Tensor:
    """Compute ``y_t = mean over HW of x_t`` (Eq. 4): T maps [B, C, H, W] -> y [T, B, C]."""
    return torch.stack([x.to(accumulate_dtype(x.dtype)).mean((2, 3)) for x in xs])
