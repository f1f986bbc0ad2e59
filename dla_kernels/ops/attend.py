from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, select
from .autograd import (
    Backward,
    accumulated,
    double_backward,
    kernels,
    needs_grad,
    split_at,
    with_signature,
    without_autocast,
)
from .checks import check_heads, check_past, check_tensor, shape_of


def attend(
    y: Tensor, q: Tensor, k: Tensor, past: Sequence[Tensor] = (), *, heads: int, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer has of each layer before it and of itself: ``coef_m = softmax_m(q . k_m / sqrt(D)) scale_m``.

    y: [B, C], the means of the layer's map.
    q, k: filters [K] over its channels, K odd.
    past: of the M layers before: () for the first; (keys, scale), [M, B, C] each; or (keys, scale, d), which are
        first refreshed by d [2 M, B, C], its first half for the keys.
    heads: G, a divisor of C.
    Returns coef, keys and scale, [M + 1, B, C] each, the latter two for the next layer, in float32 (float64 for
    float64).
    """
    check_tensor("y", y)
    if y.dim() != 2 or y.shape[1] == 0:
        raise ValueError(f"y: expected [B, C] with C of at least 1, got {shape_of(y)}")
    check_heads("", q, k, heads, y.shape[1], "y", y)
    check_past(past, y)
    chosen = select(backend, y.device)
    if chosen == REFERENCE:
        with without_autocast(y.device):
            return reference.attend(y, q, k, past, heads=heads)
    flat = accumulated([y, q, k, *past], y)
    if needs_grad(flat):
        return _Attend.apply(_Spec(chosen, heads), *flat)
    return kernels(chosen).attend(*flat[:3], flat[3:], heads)


class _Spec(NamedTuple):
    """What is not a tensor."""

    backend: str
    heads: int


class _Attend(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, y: Tensor, q: Tensor, k: Tensor, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return kernels(spec.backend).attend(y, q, k, list(past), spec.heads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spec, *flat = inputs
        ctx.save_for_backward(*flat)
        ctx.like = output[0].shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        saved = ctx.saved_tensors  # once: checkpointing recomputes them at each look
        arrived = [saved[0].new_zeros(ctx.like) if g is None else g for g in grads]
        run = _AttendBwd.apply if torch.is_grad_enabled() else _AttendBwd.forward
        return None, *run(ctx.spec, *arrived, *saved)


class _AttendBwd(Backward):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        grads, (y, q, k), past = split_at(flat, 3, 3, len(flat) - 6)
        dy, dq, dk, dpast = kernels(spec.backend).attend_bwd(*grads, y, q, k, past, spec.heads)
        return (dy, dq, dk, *dpast)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        saved = ctx.saved_tensors
        grads, inputs = split_at(saved, 3, len(saved) - 3)

        def forward(y: Tensor, q: Tensor, k: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
            return reference.attend(y, q, k, past, heads=ctx.spec.heads)

        found = double_backward(forward, inputs, grads, ggs)
        to_inputs, to_grads = split_at(found, len(inputs), len(grads))
        return None, *to_grads, *to_inputs
