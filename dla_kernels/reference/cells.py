"""One step of a cell, which is the projection, then the pointwise rule. Shapes are [..., C] throughout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import Cell, Dense, Joint, Split, Weights

ACT = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "identity": lambda c: c}


def gates(y: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """Return the pre-activations ``a [..., NG*C]`` from ``y`` and ``h [..., C]``."""
    w = type(weights)(*(weight.to(y.dtype) for weight in weights))
    if isinstance(w, Joint):
        return F.linear(F.linear(torch.cat([h, y], -1), w.w1).relu(), w.w2, w.b2)
    if isinstance(w, Split):
        from_y = F.linear(F.linear(y, w.w1y, w.b1y).relu(), w.w2y, w.b2y)
        from_h = F.linear(F.linear(h, w.w1h, w.b1h).relu(), w.w2h, w.b2h)
        return from_y + from_h
    assert isinstance(w, Dense)
    return F.linear(y, w.wy, w.by) + F.linear(h, w.wh, w.bh)


def step(y: Tensor, h: Tensor, c: Tensor, weights: Weights, cell: Cell) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``Dyn``: (what h feeds the next layer, the memory c, the output), each [..., C].

    rnn has no memory and passes ``c`` through.
    """
    a = gates(y, h, weights)
    if cell.kind == "rnn":
        h = torch.tanh(a)
        return h, c, h
    i, f, g, *o = a.chunk(cell.num_gates, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if cell.kind == "dsu":
        return ACT[cell.act](c), c, torch.sigmoid(c) if cell.output == "sigmoid" else c
    squash = torch.tanh if cell.kind == "lstm" else torch.sigmoid
    h = torch.sigmoid(o[0]) * squash(c)
    return h, c, h


def unpack_state(state: tuple[Tensor, ...] | None, like: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
    """Return (h, c) from a state as users hold it: (h,) rnn | (h, c) lstm, dia | (c,) or (h, c) dsu."""
    if state is None:
        c = torch.zeros_like(like)
        from_c = cell.h_is_act_of_c and cell.output == "context"
        return (ACT[cell.act](c) if from_c else c), c
    state = tuple(s.to(like.dtype) for s in state)
    if len(state) == 2:
        return state[0], state[1]
    return (ACT[cell.act](state[0]), state[0]) if cell.h_is_act_of_c else (state[0], state[0])
