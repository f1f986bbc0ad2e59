"""DLA-B as the published code does it: every earlier key and map is written anew at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dla_kernels import reference
from dla_kernels.attention import Attention
from dla_kernels.cells import Weights


class CopiedStage(NamedTuple):
    """The keys and values so far, refreshed, that go from layer to layer, and the cell's state."""

    keys: list[Tensor]  # [B, C] each
    values: list[Tensor]  # maps
    state: tuple[Tensor, ...] | None


def base_step_by_copying(
    x: Tensor,
    stage: CopiedStage | None,
    filters: Attention,
    weights: Weights | None = None,
    *,
    heads: int,
    moments: bool = False,
    **options: Any,
) -> tuple[Tensor, CopiedStage, Tensor | None]:
    """Compute ``reference.base_step`` by copying. (The published code refreshes the whole batch by the state of its
    first sample; here each sample has its own.)"""
    keys, values, state = stage or ([], [], None)
    B, C = x.shape[:2]
    y = x.mean((2, 3))
    if weights is not None:
        states = reference.scan(y[None], weights, state=state, **options)
        state = tuple(s[-1] for s in states)

        def dyn(rows: Tensor) -> Tensor:
            return reference.refresh(rows[None], state, weights, **options)[0]

        keys = [k * dyn(k) for k in keys]
        values = [v * dyn(v.mean((2, 3)))[..., None, None] for v in values]
    width = len(filters.q)
    q, k = (torch.conv1d(y[:, None], f[None, None], padding=width // 2)[:, 0] for f in (filters.q, filters.k))
    keys, values = [*keys, k], [*values, torch.conv2d(x, filters.v, padding=1, groups=C)]
    scores = torch.stack([(q * k).view(B, heads, -1).sum(-1) for k in keys]) / (C // heads) ** 0.5
    shares = scores.softmax(0)[:, :, :, None].expand(-1, -1, -1, C // heads).reshape(len(keys), B, C)
    o = torch.zeros_like(x)
    for share, v in zip(shares, values):
        o = o + share[..., None, None] * v
    return o, CopiedStage(keys, values, state), reference.heads.moments_of(o) if moments else None


def base_stage_by_copying(
    layers: Sequence[tuple[Tensor, Attention]], weights: Weights | None, heads: int, **options: Any
) -> list[Tensor]:
    """Return o of every layer, from its map [B, C, H, W] and its filters."""
    stage, out = None, []
    for x, filters in layers:
        o, stage, _ = base_step_by_copying(x, stage, filters, weights, heads=heads, **options)
        out.append(o)
    return out
