from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from .autograd import accumulated, without_autocast
from .checks import check_alike, check_gates
from .differentiable import Differentiable
from .shapes import moments as moments_of


def mix(
    values: Sequence[Tensor], coef: Tensor, *, moments: bool = False, backend: BackendName | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute what a layer attends to (Eq. 2): ``o = sum over m of coef_m v_m``, in one pass over all maps.

    values: M maps [B, C, H, W] of one size.
    coef: [M, B, C].
    Returns o, a map like ``values[0]``, and with ``moments`` its mean and biased variance per channel, [2, C], which
    ``norm_add`` takes and which are constants to autograd; else None.
    """
    o, _, of_o = mix_and_hand_on(values, coef, moments=moments, backend=backend)
    return o, of_o


def mix_and_hand_on(
    values: Sequence[Tensor], coef: Tensor, *, moments: bool, backend: BackendName | None
) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
    """Mix, and return the values for the next layer too: handed on through it, their gradients are gathered on the way
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
    sizes = None, len(values), int(moments)
    o, values, of_o = _run(chosen, list(values), coef, sizes=sizes, moments=moments)
    return o, values, of_o[0] if moments else None


def _forward(ops: Any, values: list[Tensor], coef: Tensor, *, moments: bool) -> tuple:
    o, of_o = ops.mix(values, coef, moments)
    return o, values, of_o


_run = Differentiable(
    "mix",
    "o values of_o",
    forward=_forward,
    backward=lambda ops, do, dvalues, values, coef: ops.mix_bwd(do, dvalues, values, coef),
    reference=lambda values, coef: (reference.mix(values, coef)[0], values),
    shapes=lambda values, coef, moments: (torch.empty_like(values[0]), moments_of(values[0], moments)),
    maps="values",
)
