"""Cells and their weights.

A cell is a *projection* (how ``y`` and ``h`` become gate pre-activations ``a``) and a *pointwise rule*
(how ``a`` and the state become the new state). ``csrc/cells/cells.h`` lists the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

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


class Light(NamedTuple):
    """``a = wy s + wh h + b``, elementwise for each gate, with ``s = W2 relu(W1 y + b1) + b2``: DIA-LSTM (Light)"""

    w1: Tensor  # [R, C]
    b1: Tensor  # [R]
    w2: Tensor  # [C, R]
    b2: Tensor  # [C]
    wy: Tensor  # [NG*C]
    wh: Tensor  # [NG*C]
    b: Tensor  # [NG*C]


class Squeeze(NamedTuple):
    """``a = W2 relu(W1 y + b1) + b2``, of y alone; a bias may be None"""

    w1: Tensor  # [R, C]
    b1: Tensor | None  # [R]
    w2: Tensor  # [C, R]
    b2: Tensor | None  # [C]


class Taps(NamedTuple):
    """``a_c = sum over k of taps_k y_(c + k - K // 2)``, a filter over the channels of y alone"""

    taps: Tensor  # [K], K odd


Weights = Joint | Split | Dense | Light | Squeeze | Taps


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of y, states, d and of all arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


KindName = Literal["rnn", "lstm", "dia", "dsu", "dsu-paper", "se", "eca"]
ActName = Literal["sigmoid", "tanh", "relu", "identity"]
OutputName = Literal["context", "sigmoid"]
ProjectionName = Literal["joint", "split", "dense", "light", "squeeze", "taps"]


class Kind(NamedTuple):
    """What there is to know of a kind of cell, beside its rule."""

    num_gates: int  # NG
    # Of what scan returns: ("h",), ("h", "c"), or ("c",), where h follows from c; () of one that remembers nothing.
    state_names: tuple[str, ...]
    projection: str  # the usual one
    compiled: bool = True  # whether backends have its rule; else it runs by the reference


KINDS: dict[str, Kind] = {
    "rnn": Kind(1, ("h",), "dense"),
    "lstm": Kind(4, ("h", "c"), "dense"),
    "dia": Kind(4, ("h", "c"), "split"),
    "dsu": Kind(3, ("c",), "split"),
    "se": Kind(1, (), "squeeze"),
    "eca": Kind(1, (), "taps"),
}
PROJECTIONS = {"joint": Joint, "split": Split, "dense": Dense, "light": Light, "squeeze": Squeeze, "taps": Taps}
RECURRENT: tuple[ProjectionName, ...] = (
    "joint",
    "split",
    "dense",
    "light",
)  # those of cells that remember; the others belong to one kind each
ACTIVATIONS = get_args(ActName)
OUTPUTS = get_args(OutputName)
_ACTS = {"dsu": ACTIVATIONS, "dia": ("sigmoid", "tanh", "relu")}  # of the kinds that have a choice
_FORMS = {"dsu": "sigmoid", "dsu-paper": "context"}  # of the DSU -> its output


@dataclass(frozen=True)
class Cell:
    """A cell says which recurrence runs over the layers.

    kind: ``"rnn" | "lstm" | "dia" | "dsu" | "dsu-paper"``, or a name given to ``register_cell``. ``"dsu"`` is the
        released form; ``"dsu-paper"`` stands for ``kind="dsu", output="context"``. ``"se" | "eca"`` remember nothing:
        their output is sig(a), for ``recalibrate`` alone.
    act: DSU, ``h = act(c)``: ``"sigmoid" | "tanh" | "relu" | "identity"``; DIA, ``h = sig(o) act(c)``, one of the first
        three (with tanh it is the LSTM).
    output: DSU only, what the refresh gate is: ``"sigmoid"`` (sig(c), as in the released code, and without it given) or
        ``"context"`` (c itself, as in the paper). The former also starts from h = 0 where no state is given, the latter
        from h = act(0).
    projection: ``"joint" | "split" | "dense" | "light"``, the type of the weights; left out, the usual one of the kind
        (rnn, lstm: dense; dia, dsu: split; dsu with output context: joint; se: squeeze, eca: taps, and no other).

    >>> Cell("lstm")
    Cell(kind='lstm', act='sigmoid', output='context', projection='dense')
    >>> Cell("dsu-paper") == PAPER_DSU, Cell("dsu") == RELEASED_DSU
    (True, True)
    >>> PAPER_DSU.rule, RELEASED_DSU.rule
    ('dsu-sigmoid-context', 'dsu-sigmoid-sigmoid')
    """

    kind: KindName | str = "dsu"
    act: ActName = "sigmoid"
    output: OutputName | Literal[""] = ""
    projection: ProjectionName | Literal[""] = ""

    def __post_init__(self) -> None:
        for field in ("kind", "act", "output", "projection"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"Cell.{field}: expected a name, got {type(getattr(self, field)).__name__}")
        form = self.kind
        if form == "dsu-paper":
            if self.output not in ("", "context"):
                raise ValueError(f"Cell.output: expected context with kind='dsu-paper', got {self.output!r}")
            self._set("kind", "dsu")
        if not self.output:
            self._set("output", _FORMS.get(form, "context"))
        if not self.projection and self.kind in KINDS:
            is_paper = self.kind == "dsu" and self.output == "context"
            self._set("projection", "joint" if is_paper else KINDS[self.kind].projection)
        for field, allowed in (
            ("kind", KINDS),
            ("act", ACTIVATIONS),
            ("output", OUTPUTS),
            ("projection", PROJECTIONS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"Cell.{field}: expected one of {', '.join(allowed)}, got {value!r}")
        own = KINDS[self.kind].projection
        if self.projection not in (RECURRENT if own in RECURRENT else (own,)):
            allowed_here = " or ".join(RECURRENT if own in RECURRENT else (own,))
            raise ValueError(
                f"Cell.projection: expected {allowed_here} with kind={self.kind!r}, got {self.projection!r}; leave it "
                "out"
            )
        if self.kind != "dsu" and self.output != "context":
            raise ValueError(
                f"Cell: output is a choice of the dsu cell, got {self.output!r} with kind={self.kind!r}; leave it out"
            )
        if self.act not in _ACTS.get(self.kind, ("sigmoid",)):
            raise ValueError(
                f"Cell.act: expected {' or '.join(_ACTS.get(self.kind, ('sigmoid',)))} with kind={self.kind!r}, got "
                f"{self.act!r}; it is a choice of the dsu and dia cells, leave it out for others"
            )

    def _set(self, field: str, value: str) -> None:
        object.__setattr__(self, field, value)

    @property
    def _known(self) -> Kind:
        if self.kind not in KINDS:  # it comes from another process
            raise ValueError(f"Cell.kind: {self.kind!r} is not registered here; call dla_kernels.register_cell first")
        return KINDS[self.kind]

    @property
    def num_gates(self) -> int:
        """Return NG, how many gates the rule has."""
        return self._known.num_gates

    @property
    def state_names(self) -> tuple[str, ...]:
        """Return the names of what ``scan`` returns, one tensor [T, B, C] each."""
        return self._known.state_names

    @property
    def state_forms(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the tensors in which a state may be given: all of it, or without an h that follows."""
        return (("c",), ("h", "c")) if self.h_follows_from_c else (self.state_names,)

    @property
    def remembers(self) -> bool:
        """Return whether the cell has a state."""
        return bool(self.state_names)

    @property
    def h_follows_from_c(self) -> bool:
        """Return whether h is a function of c, so that ``scan`` returns c alone."""
        return self.state_names == ("c",)

    @property
    def compiled(self) -> bool:
        """Return whether backends have kernels for the rule."""
        return self._known.compiled

    @property
    def rule(self) -> str:
        """Return the name of the pointwise rule in every backend."""
        if self.kind == "dia":
            return {"sigmoid": "dia", "tanh": "lstm", "relu": "dia-relu"}[self.act]
        return f"dsu-{self.act}-{self.output}" if self.kind == "dsu" else self.kind


def as_cell(cell: Cell | KindName | str) -> Cell:
    """Return the cell of that name; a cell is one already."""
    if isinstance(cell, str):
        return Cell(cell)
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a dla_kernels.Cell or the name of a kind, got {type(cell).__name__}")
    return cell


PAPER_DSU = Cell("dsu", output="context", projection="joint")
"""The DSU as the DLA paper has it: one joint bottleneck; its output is the context c."""
RELEASED_DSU = Cell("dsu", output="sigmoid", projection="split")
"""The DSU as the published code has it: two bottlenecks, all biased; its output is sigmoid(c)."""

# Every rule that is compiled, once, in the order of csrc/cells/cells.h: for tests, verify and docs.
ALL_RULES = tuple(
    [
        Cell(kind, act)
        for kind in KINDS
        if kind != "dsu" and KINDS[kind].state_names
        for act in (("sigmoid", "relu") if kind == "dia" else ("sigmoid",))  # with tanh it is the lstm
    ]
    + [Cell("dsu", act, output) for output in OUTPUTS for act in ACTIVATIONS]
)


def weight_shapes(cell: Cell, C: int, R: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of ``cell`` for C channels and bottleneck width R (dense ignores R; of taps it is
    their number)."""
    N = cell.num_gates * C
    bottleneck = {"w1": (R, C), "b1": (R,), "w2": (C, R), "b2": (C,)}
    if cell.projection == "taps":
        return {"taps": (R,)}
    if cell.projection == "squeeze":
        return bottleneck
    if cell.projection == "light":
        return bottleneck | {"wy": (N,), "wh": (N,), "b": (N,)}
    if cell.projection == "joint":
        return {"w1": (R, 2 * C), "w2": (N, R), "b2": (N,)}
    if cell.projection == "split":
        half = [("w1", (R, C)), ("b1", (R,)), ("w2", (N, R)), ("b2", (N,))]
        return {name + side: shape for side in "yh" for name, shape in half}
    return {"wy": (N, C), "by": (N,), "wh": (N, C), "bh": (N,)}
