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
    filled,
    filled_or_none,
    kernels,
    needs_grad,
    split_at,
    with_signature,
    without_autocast,
)
from .checks import check_alike, check_gates


def mix(
    values: Sequence[Tensor], coef: Tensor, *, moments: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """What a layer attends to (Eq. 2): ``o = sum over m of coef_m v_m``, in one pass over all maps.

    values: M maps [B, C, H, W] of one size.
    coef: [M, B, C].
    Returns o, a map like ``values[0]``, and with ``moments`` its mean and biased variance per channel, [2, C], which
    ``norm_add`` takes and which are constants to autograd; else None.
    """
    o, _, of_o = mix_and_hand_on(values, coef, moments=moments, backend=backend)
    return o, of_o


def mix_and_hand_on(
    values: Sequence[Tensor], coef: Tensor, *, moments: bool, backend: str | None
) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
    """``mix``, and the values for the next layer: handed on through it, their gradients are gathered on the way
    back, step by step, each by one pass, and not added up by autograd in two."""
    if isinstance(values, Tensor) or not isinstance(values, Sequence) or not values:
        raise TypeError("values: expected a list of at least one map [B, C, H, W]")
    check_alike({f"values[{m}]": value for m, value in enumerate(values)})
    check_gates("coef", "M", coef, "values", values)
    chosen = select(backend, values[0].device)
    if chosen == REFERENCE:
        with without_autocast(values[0].device):
            o, of_o = reference.mix(values, coef, moments=moments)
        return o, values, of_o
    (coef,) = accumulated([coef], values[0])
    if needs_grad(values, [coef]):
        o, *rest = _Mix.apply(_Spec(chosen, len(values), moments), *values, coef)
        values, found = split_at(rest, len(values), int(moments))
    else:
        o, found = kernels(chosen).mix(list(values), coef, moments)
    return o, values, found[0] if moments else None


class _Spec(NamedTuple):
    """What is not a tensor."""

    backend: str
    M: int
    moments: bool


class _Mix(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        values, (coef,) = split_at(flat, spec.M, 1)
        o, of_o = kernels(spec.backend).mix(values, coef, spec.moments)
        return (o, *(value.view_as(value) for value in values), *of_o)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spec, *flat = inputs
        ctx.save_for_backward(*flat)
        ctx.mark_non_differentiable(*output[1 + ctx.spec.M :])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        spec = ctx.spec
        *values, coef = ctx.saved_tensors
        (dout,), later, _ = split_at(grads, 1, spec.M, int(spec.moments))
        (dout,) = filled([dout], values[:1])
        run = _MixBwd.apply if torch.is_grad_enabled() else _MixBwd.forward
        return None, *run(spec, *values, coef, dout, *filled_or_none(later, values))


class _MixBwd(Backward):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        values, (coef, dout), later = split_at(flat, spec.M, 2, len(flat) - spec.M - 2)
        dvalues, dcoef = kernels(spec.backend).mix_bwd(dout, later, values, coef)
        return (*dvalues, dcoef)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        saved = ctx.saved_tensors
        inputs, grads = split_at(saved, ctx.spec.M + 1, len(saved) - ctx.spec.M - 1)

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            *values, coef = inputs
            return (reference.mix(values, coef)[0], *values[: len(grads) - 1])

        return None, *double_backward(forward, inputs, grads, ggs)
