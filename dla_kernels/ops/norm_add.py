from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, select
from ..reference.norm_add import move
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
from .checks import check_alike, check_weight, shape_of


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
    backend: str | None = None,
) -> Tensor:
    """What follows a step of layer attention, in one pass: ``x + keep BN(o)``, or ``x + keep relu(BN(o))``.

    x, o: maps [B, C, H, W].
    gamma, beta: the norm's weight and bias, [C].
    running: its running mean and variance, [C] each; None where it keeps none.
    moments: in training, those of o, [2, C], as the step returns them: the batch is normed by them, and ``running``
        moves towards them by ``momentum``, as ``torch.nn.BatchNorm2d`` has it. None, in evaluation: the map is normed
        by ``running``.
    keep: [B], what drop path multiplies each sample's branch by: 0, or 1 over the rate at which it keeps. Not
        negative, and a constant to autograd.
    Returns a map like x.
    """
    check_alike({"x": x, "o": o})
    C = o.shape[1]
    for name, w in (("gamma", gamma), ("beta", beta)):
        check_weight(name, w, (C,), "o", o)
    if running is not None:
        if isinstance(running, Tensor) or not isinstance(running, Sequence) or len(running) != 2:
            got = f"{len(running)} tensors" if isinstance(running, (tuple, list)) else type(running).__name__
            raise ValueError(f"running: expected (mean, variance) or None, got {got}")
        for name, w in zip(("running[0]", "running[1]"), running):
            check_weight(name, w, (C,), "o", o)
    if not isinstance(momentum, float):
        raise TypeError(f"momentum: expected a float, got {type(momentum).__name__}; for None, give 1 / batches so far")
    if moments is not None:
        check_weight("moments", moments, (2, C), "o", o)
        if o.numel() == C:
            raise ValueError(f"o: expected more than one value per channel in training, got {shape_of(o)}")
    elif running is None:
        raise ValueError(
            "moments: expected those of o where running is None, got neither; ask the step for moments=True"
        )
    if keep is not None:
        check_weight("keep", keep, (o.shape[0],), "o", o)
    chosen = select(backend, o.device)
    if chosen == REFERENCE:
        with without_autocast(o.device):
            return reference.norm_add(
                x, o, gamma, beta, running, moments=moments, momentum=momentum, eps=eps, relu=relu, keep=keep
            )
    by_batch = moments is not None
    statistics = torch.stack(running) if moments is None else moments  # type: ignore[arg-type]
    gamma, beta, by = accumulated([gamma, beta, statistics], o)
    keeps = [] if keep is None else accumulated([keep.detach()], o)
    if o.shape[0] == 0:
        by = torch.zeros_like(by)  # of nothing, but gradients of zero have to come of it
    if needs_grad([x, o, gamma, beta]):
        out = _NormAdd.apply(_Spec(chosen, eps, relu, by_batch), x, o, gamma, beta, by.detach(), *keeps)
    else:
        out = kernels(chosen).norm_add(x, o, by, gamma, beta, keeps, eps, relu)
    if moments is not None and running is not None:
        move(running, moments, momentum, o.numel() // C)  # last, so that a call that fails moves nothing
    return out


class _Spec(NamedTuple):
    """What is not a tensor."""

    backend: str
    eps: float
    relu: bool
    by_batch: bool


class _NormAdd(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, x: Tensor, o: Tensor, gamma: Tensor, beta: Tensor, by: Tensor, *keep: Tensor) -> Tensor:
        return kernels(spec.backend).norm_add(x, o, by, gamma, beta, list(keep), spec.eps, spec.relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.spec, _, *flat = inputs
        ctx.save_for_backward(*flat)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        run = _NormAddBwd.apply if torch.is_grad_enabled() else _NormAddBwd.forward
        saved = ctx.saved_tensors  # once: checkpointing recomputes them at each look
        do, dgamma, dbeta = run(ctx.spec, dout, *saved)
        return None, dout, do, dgamma, dbeta, *([None] * (len(saved) - 3))


class _NormAddBwd(Backward):
    @staticmethod
    @with_signature
    def forward(
        spec: _Spec, dout: Tensor, o: Tensor, gamma: Tensor, beta: Tensor, by: Tensor, *keep: Tensor
    ) -> tuple[Tensor, ...]:
        return kernels(spec.backend).norm_add_bwd(
            dout, o, by, gamma, beta, list(keep), spec.eps, spec.relu, spec.by_batch
        )

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        spec = ctx.spec
        saved = ctx.saved_tensors
        (dout,), inputs, (by,), keep = split_at(saved, 1, 3, 1, len(saved) - 5)

        def forward(o: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
            zero = torch.zeros_like(o)
            how = {"eps": spec.eps, "relu": spec.relu, "keep": keep[0] if keep else None}
            if spec.by_batch:
                return (reference.norm_add(zero, o, gamma, beta, None, moments=by, **how),)
            return (reference.norm_add(zero, o, gamma, beta, tuple(by.unbind()), **how),)

        *to_inputs, to_dout = double_backward(forward, inputs, [dout], ggs)
        return None, to_dout, *to_inputs, *([None] * (1 + len(keep)))
