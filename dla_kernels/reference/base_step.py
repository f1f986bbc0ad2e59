from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import Attention, BaseStage
from ..cells import PAPER_DSU, Cell, Weights
from .attention import across_channels, per_channel, scores
from .depthwise import depthwise
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
    moments: bool = False,
) -> tuple[Tensor, BaseStage, Tensor | None]:
    """One layer of DLA-B (Eq. 2), of MRLA-B without a cell: x [B, C, H, W] -> o, the stage with one layer more, and
    the moments of o where asked for.

    ``o = sum over m of softmax_m(q . k_m / sqrt(D)) v_m``, each earlier ``k_m`` and ``v_m`` refreshed with the state
    after x. Since ``mean(v d) = mean(v) d``, the refreshes of a value gather in one number per sample and channel,
    and its map stays as it was.
    """
    return from_parts(PARTS, x, stage, attention, weights, heads=heads, cell=cell, moments=moments)


class Parts(NamedTuple):
    """The ops of which a layer is made: here the reference's, elsewhere a backend's."""

    depthwise: Callable
    scan: Callable
    refresh: Callable
    mix: Callable  # returns the values too, for the next layer


def _mix(values: Sequence[Tensor], coef: Tensor, *, moments: bool) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
    o, of_o = mix(values, coef, moments=moments)
    return o, values, of_o


PARTS = Parts(depthwise, scan, refresh, _mix)


def from_parts(
    parts: Parts,
    x: Tensor,
    stage: BaseStage | None,
    attention: Attention,
    weights: Weights | None,
    *,
    heads: int,
    cell: Cell,
    moments: bool,
) -> tuple[Tensor, BaseStage, Tensor | None]:
    value, y = parts.depthwise(x, attention.v)
    q, key = (across_channels(y[0], taps)[None] for taps in (attention.q, attention.k))  # [1, B, C]
    mean, one = y[1:], torch.ones_like(y[1:])
    state = stage.state if stage else None
    if weights is not None:
        state = tuple(s[0] for s in parts.scan(y[:1], weights, cell=cell, state=state))
    if stage is None:
        values, pooled, scale, keys = (value,), mean, one, key
    else:
        scale, keys = stage.scale, stage.keys
        if weights is not None:
            d = parts.refresh(torch.cat([keys, stage.pooled * scale]), state, weights, cell=cell)
            for_keys, for_values = d.chunk(2)
            keys, scale = keys * for_keys, scale * for_values
        values = (*stage.values, value)
        pooled, scale, keys = (torch.cat(p) for p in ((stage.pooled, mean), (scale, one), (keys, key)))
    shares = torch.softmax(scores(q, keys, heads), 0)  # [M, B, G]
    o, values, of_o = parts.mix(values, per_channel(shares, x.shape[1]) * scale, moments=moments)
    return o, BaseStage(tuple(values), pooled, scale, keys, state), of_o
