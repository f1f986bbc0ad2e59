"""Functions that both steps of layer attention share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import Cell, Weights, accumulate_dtype
from .cells import step, unpack_state

State = tuple[Tensor, ...]


def across_channels(y: Tensor, taps: Tensor) -> Tensor:
    """Apply a filter [K] over the channels of y [B, C], with zeros beyond them."""
    return F.conv1d(y[:, None], taps.to(y.dtype)[None, None], padding=taps.shape[0] // 2)[:, 0]


def scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Compute ``q . k / sqrt(D)`` per head: [..., C] -> [..., G]."""
    per_head = (q * k).unflatten(-1, (heads, -1))
    return per_head.sum(-1) * per_head.shape[-1] ** -0.5


def gate(y: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Compute ``sig(q . k / sqrt(D))``, a layer's share where it looks at itself alone: y [B, C] -> [B, G]."""
    return torch.sigmoid(scores(across_channels(y, q), across_channels(y, k), heads))


def shares(y: Tensor, q: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Compute ``softmax_m(q . k_m / sqrt(D))`` over all keys [M, B, C]: y [B, C] -> [M, B, G]."""
    return torch.softmax(scores(across_channels(y, q), keys, heads), 0)


def per_channel(of_heads: Tensor, C: int) -> Tensor:
    """Repeat what heads have for each of their channels: [..., G] -> [..., C]."""
    return of_heads.repeat_interleave(C // of_heads.shape[-1], -1)


def depthwise(x: Tensor, taps: Tensor) -> Tensor:
    """Filter each channel of x [B, C, H, W] with its own of the 3x3 ``taps`` [C, 1, 3, 3], with zeros around it."""
    return F.conv2d(x, taps.to(x.dtype), padding=1, groups=x.shape[1])


def next_state(y: Tensor, state: State | None, weights: Weights, cell: Cell) -> State:
    """Run one step of the scan: y [B, C] and a state -> the state, in the form of ``cell.state_names``."""
    h, c, _ = step(y, *unpack_state(state, y, cell), weights, cell)
    return tuple({"h": h, "c": c}[name] for name in cell.state_names)


def moments_of(o: Tensor) -> Tensor:
    """Return mean and biased variance of each channel of o [B, C, H, W], as a batch norm takes them: [2, C]. They are
    constants to autograd, since a batch norm's own gradient includes theirs."""
    exact = o.detach().to(accumulate_dtype(o.dtype))
    var, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    return torch.stack([mean, var])
