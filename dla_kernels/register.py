"""Cells that users write in plain PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .cells import KINDS, RECURRENT, Cell, Kind, ProjectionName
from .reference.cells import RULES, Rule

STATES = (("h",), ("h", "c"), ("c",))


def register_cell(
    name: str,
    *,
    gates: int,
    states: tuple[str, ...],
    step: Callable[[Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Tensor]],
    output: Callable[[Tensor, Tensor], Tensor],
    feed: Callable[[Tensor], Tensor] = lambda c: c,
    projection: ProjectionName = "joint",
) -> Cell:
    """Make a cell known by a name, for ops, modules and networks, and return it. It has no kernels: what it is part of
    runs by the reference, differentiably, on any device. A name may be registered again.

    gates: NG, how many the projection makes.
    states: what ``scan`` returns: ``("h",)``, ``("h", "c")``, or ``("c",)``, where h is ``feed(c)``, or c itself.
    step: takes the gates' pre-activations, NG tensors, and h and c, all [..., C]; returns h and c. A cell without a
        memory hands c on. What h says to the next layer comes through the projection.
    output: takes h and c; returns what the refresh gate is, [..., C].
    projection: the usual one, ``"joint"``, ``"split"``, ``"dense"`` or ``"light"``.

    >>> def step(a, h, c):  # a minimal gated unit
    ...     f = torch.sigmoid(a[0])
    ...     c = f * c + (1 - f) * torch.tanh(a[1])
    ...     return c, c
    >>> cell = register_cell("minimal", gates=2, states=("c",), step=step, output=lambda h, c: c)
    >>> net = dla_kernels.create_model("dla_light_resnet20", cell="minimal")
    """
    compiled = [kind for kind in KINDS if KINDS[kind].compiled]
    if not re.fullmatch(r"[a-z]\w*", str(name)) or name in compiled:
        raise ValueError(f"name: expected a word of small letters that is none of {', '.join(compiled)}, got {name!r}")
    if not isinstance(gates, int) or isinstance(gates, bool) or gates < 1:
        raise ValueError(f"gates: expected at least 1, got {gates!r}")
    if tuple(states) not in STATES:
        raise ValueError(f"states: expected one of {', '.join(map(str, STATES))}, got {states!r}")
    if projection not in RECURRENT:
        raise ValueError(f"projection: expected one of {', '.join(RECURRENT)}, got {projection!r}")
    rule = Rule(step, output, feed)
    check_rule(rule, gates, tuple(states))
    KINDS[name] = Kind(gates, tuple(states), projection, compiled=False)
    RULES[name] = rule
    return Cell(name)


def check_rule(rule: Rule, gates: int, states: tuple[str, ...]) -> None:
    """Raise an error unless the functions return what they have to, of some numbers."""
    shape = (2, 3)
    *a, h, c = torch.linspace(-1, 1, (gates + 2) * 6, dtype=torch.float64).view(-1, *shape)
    made = rule.step(a, h, c)
    if not isinstance(made, tuple) or [getattr(x, "shape", None) for x in made] != [shape] * 2:
        raise ValueError(f"step: expected h and c like those given, two tensors {list(shape)}, got {told(made)}")
    new_h, new_c = made
    if getattr(rule.output(new_h, new_c), "shape", None) != shape:
        raise ValueError(f"output: expected a tensor {list(shape)}, got {told(rule.output(new_h, new_c))}")
    if states == ("h",):
        h_of_other, c_of_other = rule.step(a, h, c + 1)
        shown = rule.output(new_h, c), rule.output(new_h, c + 1)
        if not (torch.equal(h_of_other, new_h) and torch.equal(c_of_other, c + 1) and torch.equal(*shown)):
            raise ValueError(
                "step, output: expected h alone to matter, as states=('h',) keeps no c, got a cell that uses c or "
                "does not hand it on; give states=('h', 'c')"
            )
    if states == ("c",) and not torch.allclose(rule.feed(new_c), new_h):
        raise ValueError(
            "step: expected h = feed(c), as states=('c',) keeps c alone, got another h; give feed, or states=('h', 'c')"
        )


def told(made: object) -> str:
    if isinstance(made, tuple):
        return ", ".join(map(told, made))
    return f"a tensor {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
