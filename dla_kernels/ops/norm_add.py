from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from ..reference.norm_add import move
from .autograd import accumulated, without_autocast
from .checks import check_alike, check_weight, shape_of
from .differentiable import Differentiable


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
    backend: BackendName | None = None,
) -> Tensor:
    """Compute what follows a step of layer attention, in one pass: ``x + keep BN(o)``, or ``x + keep relu(BN(o))``.

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
    statistics = torch.stack(running) if moments is None else moments  # type: ignore[arg-type]
    gamma, beta, by = accumulated([gamma, beta, statistics], o)
    keeps = [] if keep is None else accumulated([keep.detach()], o)
    if o.shape[0] == 0:
        by = torch.zeros_like(by)  # an empty batch has no moments, but its gradients have to be zero
    how = {"eps": eps, "relu": relu, "by_batch": moments is not None}
    (out,) = _run(chosen, x, o, gamma, beta, by.detach(), keeps, sizes=(None,), **how)
    if moments is not None and running is not None:
        move(running, moments, momentum, o.numel() // C)  # last, so that a call that fails moves nothing
    return out


def _by_reference(
    o: Tensor, gamma: Tensor, beta: Tensor, moments: Tensor, keep: list[Tensor], eps: float, relu: bool, by_batch: bool
) -> tuple:
    by = {"running": None, "moments": moments} if by_batch else {"running": tuple(moments.unbind())}
    zero = torch.zeros_like(o)  # x moves the result, not its derivatives
    return (reference.norm_add(zero, o, gamma, beta, **by, eps=eps, relu=relu, keep=keep[0] if keep else None),)


_run = Differentiable(
    "norm_add",
    "out",
    forward=lambda ops, x, o, gamma, beta, moments, keep, *, eps, relu, by_batch: (
        ops.norm_add(x, o, moments, gamma, beta, keep, eps, relu),
    ),
    backward=lambda ops, dout, o, gamma, beta, moments, keep, eps, relu, by_batch: ops.norm_add_bwd(
        dout, o, moments, gamma, beta, keep, eps, relu, by_batch
    ),
    reference=_by_reference,
    shapes=lambda x, o, moments, gamma, beta, keep, eps, relu: torch.empty_like(x),
    maps="x o",
    constants="moments keep",
    passed="x",
)
