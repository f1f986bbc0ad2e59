"""Cells and their weights.

A cell is a *projection* (how ``y`` and ``h`` become gate pre-activations ``a``) and a *pointwise rule*
(how ``a`` and the state become the new state). ``csrc/cells/cells.h`` lists the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Joint(NamedTuple):
    """``a = W2 relu(W1 [h, y]) + b2``; the columns of ``w1`` are h first, then y."""

    w1: Tensor  # [R, 2C]
    w2: Tensor  # [NG*C, R]
    b2: Tensor  # [NG*C]


class Split(NamedTuple):
    """``a = W2y relu(W1y y + b1y) + b2y + W2h relu(W1h h + b1h) + b2h``"""

    w1y: Tensor  # [R, C]
    b1y: Tensor  # [R]
    w2y: Tensor  # [NG*C, R]
    b2y: Tensor  # [NG*C]
    w1h: Tensor  # [R, C]
    b1h: Tensor  # [R]
    w2h: Tensor  # [NG*C, R]
    b2h: Tensor  # [NG*C]


class Dense(NamedTuple):
    """``a = Wy y + by + Wh h + bh``"""

    wy: Tensor  # [NG*C, C]
    by: Tensor  # [NG*C]
    wh: Tensor  # [NG*C, C]
    bh: Tensor  # [NG*C]


Weights = Joint | Split | Dense


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of y, states, d and of all arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


PROJECTIONS = {"joint": Joint, "split": Split, "dense": Dense}
NUM_GATES = {"rnn": 1, "lstm": 4, "dia": 4, "dsu": 3}  # NG
ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")
OUTPUTS = ("context", "sigmoid")

_USUAL_PROJECTION = {"rnn": "dense", "lstm": "dense", "dia": "split", "dsu": "joint"}
_STATE_NAMES = {"rnn": ("h",), "lstm": ("h", "c"), "dia": ("h", "c"), "dsu": ("c",)}


@dataclass(frozen=True)
class Cell:
    """A cell says which recurrence runs over the layers.

    kind: ``"rnn" | "lstm" | "dia" | "dsu"``.
    act: DSU only, ``h = act(c)``: ``"sigmoid" | "tanh" | "relu" | "identity"``.
    output: DSU only, what the refresh gate is: ``"context"`` (c itself, as in the paper) or
        ``"sigmoid"`` (sig(c), as in the released code). The latter also starts from h = 0 where no
        state is given, the former from h = act(0).
    projection: ``"joint" | "split" | "dense"``, the type of the weights; left out, the usual one
        of the kind (rnn, lstm: dense; dia: split; dsu: joint).

    >>> Cell("lstm")
    Cell(kind='lstm', act='sigmoid', output='context', projection='dense')
    >>> PAPER_DSU.rule, RELEASED_DSU.rule
    ('dsu-sigmoid-context', 'dsu-sigmoid-sigmoid')
    """

    kind: str = "dsu"
    act: str = "sigmoid"
    output: str = "context"
    projection: str = ""

    def __post_init__(self) -> None:
        if not self.projection and self.kind in _USUAL_PROJECTION:
            object.__setattr__(self, "projection", _USUAL_PROJECTION[self.kind])
        for field, allowed in (
            ("kind", NUM_GATES),
            ("act", ACTIVATIONS),
            ("output", OUTPUTS),
            ("projection", PROJECTIONS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"Cell.{field}: expected one of {', '.join(allowed)}, got {value!r}")
        if self.kind != "dsu" and (self.act, self.output) != ("sigmoid", "context"):
            raise ValueError(
                f"Cell: act and output are choices of the dsu cell, got act={self.act!r}, "
                f"output={self.output!r} with kind={self.kind!r}; leave them out"
            )

    @property
    def num_gates(self) -> int:
        """Return NG, how many gates the rule has."""
        return NUM_GATES[self.kind]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Return the names of what ``scan`` returns, one tensor [T, B, C] each."""
        return _STATE_NAMES[self.kind]

    @property
    def state_forms(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the tensors in which a state may be given: all of it, or without an h = act(c)."""
        return (("c",), ("h", "c")) if self.h_is_act_of_c else (self.state_names,)

    @property
    def h_is_act_of_c(self) -> bool:
        """Return whether h follows from c, so that ``scan`` returns c alone."""
        return self.state_names == ("c",)

    @property
    def rule(self) -> str:
        """Return the name of the pointwise rule in every backend."""
        return f"dsu-{self.act}-{self.output}" if self.kind == "dsu" else self.kind


PAPER_DSU = Cell("dsu", output="context", projection="joint")
"""The DSU as the DLA paper has it: one joint bottleneck; its output is the context c."""
RELEASED_DSU = Cell("dsu", output="sigmoid", projection="split")
"""The DSU as the published code has it: two bottlenecks, all biased; its output is sigmoid(c)."""

# Every rule once, for tests, verify and docs.
ALL_RULES = tuple(
    [Cell(kind) for kind in ("rnn", "lstm", "dia")]
    + [Cell("dsu", act, output) for output in OUTPUTS for act in ACTIVATIONS]
)


def weight_shapes(cell: Cell, C: int, R: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of ``cell`` for C channels and bottleneck width R (dense ignores R)."""
    N = cell.num_gates * C
    if cell.projection == "joint":
        return {"w1": (R, 2 * C), "w2": (N, R), "b2": (N,)}
    if cell.projection == "split":
        half = [("w1", (R, C)), ("b1", (R,)), ("w2", (N, R)), ("b2", (N,))]
        return {name + side: shape for side in "yh" for name, shape in half}
    return {"wy": (N, C), "by": (N,), "wh": (N, C), "bh": (N,)}
