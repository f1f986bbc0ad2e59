from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from .autograd import kernels, needs_grad, with_signature
from .checks import check_maps
from .shapes import declare, rows


def gap(xs: Sequence[Tensor], *, backend: BackendName | None = None) -> Tensor:
    """Pool maps globally (Eq. 4): ``y_t = mean over HW of x_t``.

    xs: T maps [B, C, H, W] that share dtype, device, B and C.
    Returns y [T, B, C], in float32 (float64 for float64 maps).
    """
    check_maps(xs)
    chosen = select(backend, xs[0].device)
    if chosen == REFERENCE:
        return reference.gap(xs)
    if needs_grad(xs):
        return _Gap.apply(chosen, *xs)
    return kernels(chosen).gap(list(xs))


class _Gap(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(backend: str, *xs: Tensor) -> Tensor:
        return kernels(backend).gap(list(xs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, *xs = inputs
        ctx.maps = [(x.shape, x.dtype) for x in xs]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        # A gradient that is constant over HW needs no memory: an expanded view, and no kernel.
        dxs = [
            (dy[t] / (shape[2] * shape[3])).to(dtype)[:, :, None, None].expand(shape)
            for t, (shape, dtype) in enumerate(ctx.maps)
        ]
        return None, *dxs


declare("gap", rows)
