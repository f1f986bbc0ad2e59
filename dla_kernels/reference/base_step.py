from __future__ import annotations

import torch
from torch import Tensor

from ..attention import Attention, BaseStage
from ..cells import PAPER_DSU, Cell, Weights
from .attention import across_channels, next_state, per_channel, scores
from .depthwise import depthwise
from .mix import mix
from .refresh import refresh


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
    value, (y, mean) = depthwise(x, attention.v)
    mean, key = mean[None], across_channels(y, attention.k)[None]
    state = stage.state if stage else None
    if weights is not None:
        state = next_state(y, state, weights, cell)
    if stage is None:
        stage = BaseStage((value,), mean, torch.ones_like(mean), key, state)
    else:
        keys, scale = stage.keys, stage.scale
        if weights is not None and state is not None:
            d = refresh(torch.cat([keys, stage.pooled * scale]), state, weights, cell=cell)
            for_keys, for_values = d.chunk(2)
            keys, scale = keys * for_keys, scale * for_values
        stage = BaseStage(
            (*stage.values, value),
            torch.cat([stage.pooled, mean]),
            torch.cat([scale, torch.ones_like(mean)]),
            torch.cat([keys, key]),
            state,
        )
    shares = torch.softmax(scores(across_channels(y, attention.q), stage.keys, heads), 0)  # [M, B, G]
    o, of_o = mix(stage.values, per_channel(shares, x.shape[1]) * stage.scale, moments=moments)
    return o, stage, of_o
