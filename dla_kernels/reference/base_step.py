from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import Attention, BaseStage, Scores
from ..cells import PAPER_DSU, Cell, Weights
from .attend import attend
from .depthwise import depthwise
from .heads import State, shares
from .mix import mix
from .refresh import refresh
from .scan import scan


def base_step(
    x: Tensor,
    stage: BaseStage | None,
    attention: Attention,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell = PAPER_DSU,
    state: State | None = None,
    moments: bool = False,
    scores: bool = False,
) -> tuple[Tensor, BaseStage, Tensor | None] | tuple[Tensor, BaseStage, Tensor | None, Scores]:
    """Compute one layer of DLA-B (Eq. 2), of MRLA-B without a cell: x [B, C, H, W] -> o, the stage with one layer more,
    and the moments of o and the scores where asked for.

    ``o = sum over m of softmax_m(q . k_m / sqrt(D)) v_m``, each earlier ``k_m`` and ``v_m`` refreshed with the state
    after x. Since ``mean(v d) = mean(v) d``, the refreshes of a value gather in one number per sample and channel,
    and its map stays as it was. ``state`` is the cell's before the first layer.
    """
    return from_parts(
        PARTS, x, stage, attention, weights, heads=heads, cell=cell, state=state, moments=moments, scores=scores
    )


class Parts(NamedTuple):
    """The ops of which a layer is made: here the reference's, elsewhere a backend's."""

    depthwise: Callable
    scan: Callable
    refresh: Callable
    attend: Callable
    mix: Callable  # returns the values too, for the next layer


def _mix(values: Sequence[Tensor], coef: Tensor, *, moments: bool) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
    o, of_o = mix(values, coef, moments=moments)
    return o, values, of_o


PARTS = Parts(depthwise, scan, refresh, attend, _mix)


def from_parts(
    parts: Parts,
    x: Tensor,
    stage: BaseStage | None,
    attention: Attention,
    weights: Weights | None,
    *,
    heads: int,
    cell: Cell,
    state: State | None,
    moments: bool,
    scores: bool,
) -> tuple[Tensor, BaseStage, Tensor | None] | tuple[Tensor, BaseStage, Tensor | None, Scores]:
    value, y = parts.depthwise(x, attention.v)
    values, pooled = (value,), y[1:]
    past: tuple[Tensor, ...] = ()
    d = None
    if stage is not None:
        state, past = stage.state, (stage.keys, stage.scale)
        values, pooled = (*stage.values, value), torch.cat([stage.pooled, pooled])
    if weights is not None:
        state = tuple(s[0] for s in parts.scan(y[:1], weights, cell=cell, state=state))
        if stage is not None:
            rows = torch.cat([stage.keys, stage.pooled * stage.scale])
            d = parts.refresh(rows, state, weights, cell=cell)
            past = (*past, d)
    coef, keys, scale = parts.attend(y[0], attention.q, attention.k, past, heads=heads)
    o, values, of_o = parts.mix(values, coef, moments=moments)
    stage = BaseStage(tuple(values), pooled, scale, keys, state)
    if not scores:
        return o, stage, of_o
    with torch.no_grad():  # from the keys, which are small: of coef no share is to be had where its scale is 0
        of_heads = shares(y[0], attention.q, keys, heads)
    return o, stage, of_o, Scores(of_heads, None if d is None else d.detach().unflatten(0, (2, -1)))
