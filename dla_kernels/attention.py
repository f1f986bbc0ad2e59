"""Layer attention inside a network: the weights of one layer, and what a stage remembers from layer to layer."""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

# What may stand behind the filter that makes a layer's value, by name.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu}


class Attention(NamedTuple):
    """The filters that one layer has of its own."""

    q: Tensor  # [K], over the channels of y; no bias
    k: Tensor  # [K]
    v: Tensor  # [C, 1, 3, 3], depthwise over x; no bias


class BaseStage(NamedTuple):
    """The memory that ``base_step`` hands from layer to layer, after M layers. The values are never rewritten: the
    product of all their refreshes so far is ``scale``."""

    values: tuple[Tensor, ...]  # M maps v_m [B, C, H, W], as they were
    pooled: Tensor  # [M, B, C], their means
    scale: Tensor  # [M, B, C]
    keys: Tensor  # [M, B, C], refreshed
    state: tuple[Tensor, ...] | None  # of the cell, each [B, C]; None without one


class Scores(NamedTuple):
    """What a step weighed its sum by. They are constants to autograd."""

    shares: Tensor  # of G heads; light: the layer's own gate, [B, G]; base: the softmax over M layers, [M, B, G]
    d: Tensor | None  # what refreshed o_prev, [B, C]; base: M - 1 keys and values, [2, M - 1, B, C]; None: nothing did


def filter_width(C: int) -> int:
    """Return K, how many neighbouring channels make a query or a key.

    >>> [filter_width(C) for C in (16, 64, 256, 2048)]
    [3, 3, 5, 7]
    """
    return int(abs((log2(C) + 1) / 2)) | 1
