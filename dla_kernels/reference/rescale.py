from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..cells import accumulate_dtype


def rescale(xs: Sequence[Tensor], d: Tensor, *, inplace: bool = False) -> list[Tensor]:
    """Compute ``x_t <- x_t * d_t``, broadcast over HW (Eq. 6): T maps [B, C, H, W] and d [T, B, C] -> T maps."""
    out = [
        (x.to(accumulate_dtype(x.dtype)) * d_t.to(accumulate_dtype(x.dtype))[:, :, None, None]).to(x.dtype)
        for x, d_t in zip(xs, d, strict=True)
    ]
    return [x.copy_(new) for x, new in zip(xs, out, strict=True)] if inplace else out
