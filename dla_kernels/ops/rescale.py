from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, select
from .autograd import Backward, accumulated, double_backward, filled, kernels, needs_grad, split_at, with_signature
from .checks import check_gates, check_maps
from .inplace import check_inplace, mark_written


def rescale(xs: Sequence[Tensor], d: Tensor, *, inplace: bool = False, backend: str | None = None) -> list[Tensor]:
    """The rescale of Eq. 6: ``x_t <- x_t * d_t``, broadcast over HW.

    xs: T maps [B, C, H, W] that share dtype, device, B and C.
    d: [T, B, C].
    inplace: write the maps where they are; under ``torch.no_grad()`` only.
    Returns T maps, each with the dtype and memory layout of its input.
    """
    check_maps(xs)
    check_gates("d", "T", d, "xs", xs)
    if inplace:
        check_inplace(xs)
    chosen = select(backend, xs[0].device)
    if chosen == REFERENCE:
        return reference.rescale(xs, d, inplace=inplace)
    (d,) = accumulated([d], xs[0])
    if inplace:
        mark_written(xs)
        kernels(chosen).rescale_(list(xs), d)
        return list(xs)
    if needs_grad(xs, [d]):
        return list(_Rescale.apply(chosen, d, *xs))
    return kernels(chosen).rescale(list(xs), d)


class _Rescale(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(backend: str, d: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
        return tuple(kernels(backend).rescale(list(xs), d))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.backend, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *dout: Tensor | None) -> tuple:
        d, *xs = ctx.saved_tensors
        run = _RescaleBwd.apply if torch.is_grad_enabled() else _RescaleBwd.forward
        dd, *dxs = run(ctx.backend, d, *xs, *filled(dout, xs))
        return None, dd, *dxs


class _RescaleBwd(Backward):
    @staticmethod
    @with_signature
    def forward(backend: str, d: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        xs, dout = split_at(maps, len(maps) // 2, len(maps) // 2)
        dxs, dd = kernels(backend).rescale_bwd(dout, xs, d)
        return (dd, *dxs)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        d, *maps = ctx.saved_tensors
        T = len(maps) // 2

        def forward(d: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
            return tuple(reference.rescale(xs, d))

        return None, *double_backward(forward, [d, *maps[:T]], maps[T:], ggs)
