from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cells import accumulate_dtype
from .heads import moments_of


def mix(values: Sequence[Tensor], coef: Tensor, *, moments: bool = False) -> tuple[Tensor, Tensor | None]:
    """Compute ``o = sum over m of coef_m v_m`` (Eq. 2): M maps [B, C, H, W] of one size and coef [M, B, C] -> o, and
    its moments where asked for."""
    dtype = accumulate_dtype(values[0].dtype)
    zero = torch.zeros_like(values[0], dtype=dtype)
    o = sum((c[..., None, None] * v.to(dtype) for c, v in zip(coef.to(dtype), values, strict=True)), zero)
    o = o.to(values[0].dtype)
    return o, moments_of(o) if moments else None
