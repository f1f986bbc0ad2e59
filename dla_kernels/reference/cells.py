"""One step of a cell, which is the projection, then the pointwise rule. Shapes are [..., C] throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import ACTIVATIONS, OUTPUTS, Cell, Dense, Joint, Light, Split, Squeeze, Taps, Weights

ACT = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "identity": lambda c: c}


class Rule(NamedTuple):
    """The pointwise rule of a cell."""

    step: Callable[[Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]  # of gates a, h and c -> h, c
    output: Callable[[Tensor, Tensor], Tensor]  # of h and c
    feed: Callable[[Tensor], Tensor] = lambda c: c  # h from c, for a cell that keeps c alone
    starts_fed: bool = True  # whether such a cell starts from feed(0), or from h = 0


def memory(a: Sequence[Tensor], c: Tensor) -> Tensor:
    """Return ``c' = sig(f) c + sig(i) tanh(g)``, which LSTM, DIA and DSU share; a holds i, f, g (, o)."""
    return torch.sigmoid(a[1]) * c + torch.sigmoid(a[0]) * torch.tanh(a[2])


def rnn(a: Sequence[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(a[0]), c


def dia(act: str) -> Rule:
    def step(a: Sequence[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = memory(a, c)
        return torch.sigmoid(a[3]) * ACT[act](c), c

    return Rule(step, read_h)


def gate(a: Sequence[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(a[0]), c


def dsu(act: str, output: str) -> Rule:
    def step(a: Sequence[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = memory(a, c)
        return ACT[act](c), c

    def read(h: Tensor, c: Tensor) -> Tensor:
        return torch.sigmoid(c) if output == "sigmoid" else c

    return Rule(step, read, ACT[act], starts_fed=output == "context")


def read_h(h: Tensor, c: Tensor) -> Tensor:
    return h


RULES = {"rnn": Rule(rnn, read_h), "lstm": dia("tanh"), "dia": dia("sigmoid"), "dia-relu": dia("relu")}
RULES |= {"se": Rule(gate, read_h), "eca": Rule(gate, read_h)}
RULES |= {f"dsu-{act}-{output}": dsu(act, output) for output in OUTPUTS for act in ACTIVATIONS}


def squeezed(y: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """Return what a bottleneck makes of y alone, [..., C]."""
    return F.linear(F.linear(y, w1, b1).relu(), w2, b2)


def gates(y: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """Return the pre-activations ``a [..., NG*C]`` from ``y`` and ``h [..., C]``."""
    converted: list = [weight if weight is None else weight.to(y.dtype) for weight in weights]
    w = type(weights)(*converted)
    if isinstance(w, Taps):
        return F.conv1d(y.reshape(-1, 1, y.shape[-1]), w.taps[None, None], padding=len(w.taps) // 2).view(y.shape)
    if isinstance(w, Squeeze):
        return squeezed(y, *w)
    if isinstance(w, Light):
        made, num_gates = squeezed(y, *w[:4]), len(w.b) // y.shape[-1]
        return w.wy * torch.cat([made] * num_gates, -1) + w.wh * torch.cat([h] * num_gates, -1) + w.b
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

    A cell without a memory passes ``c`` through.
    """
    rule = RULES[cell.rule]
    h, c = rule.step(gates(y, h, weights).chunk(cell.num_gates, -1), h, c)
    return h, c, rule.output(h, c)


def unpack_state(state: tuple[Tensor, ...] | None, like: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
    """Return (h, c) from a state as users hold it, by ``cell.state_forms``: (h,), (h, c), or (c,), where h follows."""
    rule, fed = RULES[cell.rule], cell.h_follows_from_c
    if not state:
        c = torch.zeros_like(like)
        return (rule.feed(c) if fed and rule.starts_fed else c), c
    state = tuple(s.to(like.dtype) for s in state)
    if len(state) == 2:
        return state[0], state[1]
    return (rule.feed(state[0]) if fed else state[0]), state[0]


def output_of(state: tuple[Tensor, ...], cell: Cell) -> Tensor:
    """Return what a cell shows of a state as users hold it."""
    return RULES[cell.rule].output(*unpack_state(state, state[0], cell))
