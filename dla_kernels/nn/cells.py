"""Cells with their weights as parameters, and the state they start from."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import BackendName, check_backend
from ..cells import PROJECTIONS, Cell, KindName, Weights, accumulate_dtype, as_cell, weight_shapes
from ..ops import scan
from ..reference.cells import output_of, unpack_state
from .hooks import is_watched
from .leaf import leaf

STARTS = ("zeros", "random", "learned")


class CellModule(nn.Module):
    """Any cell over the layers of a stage whose maps have C channels.

    channels: C.
    cell: what it computes, see ``dla_kernels.Cell``.
    reduction: r, of which the bottleneck is R = max(1, C // r) wide, in a light cell C // 2r; a dense projection has
        none.
    layers: how many cells are stacked. Those after the first are dense, their y being the h of the one below; the state
        is that of all, the first one's first. Ops take the weights of one alone: ``LayerwiseIntegration`` stacks.
    dropout: of the h that goes up from each but the last, in training.
    start: the memory before the first layer: ``"zeros"``; ``"random"``, drawn once and kept with the weights; or
        ``"learned"``, a parameter.
    backend: as for the ops.

    >>> cell = CellModule(64, dla_kernels.Cell("lstm"))
    >>> h, c = cell(torch.randn(8, 64))  # one step from the start
    >>> h, c = cell(torch.randn(8, 64), (h, c))
    >>> h.shape
    torch.Size([8, 64])
    """

    def __init__(
        self,
        channels: int,
        cell: Cell | KindName | str,
        reduction: int = 4,
        *,
        layers: int = 1,
        dropout: float = 0.0,
        start: str = "zeros",
        backend: BackendName | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layers, int) or layers < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"layers, dropout: expected an integer of at least 1 and a number from 0 to less than 1, got "
                f"{layers!r}, {dropout!r}"
            )
        if start not in STARTS:
            raise ValueError(f"start: expected one of {', '.join(STARTS)}, got {start!r}")
        if channels < 1 or reduction < 1:
            raise ValueError(f"channels, reduction: expected at least 1, got {channels}, {reduction}")
        check_backend(backend)
        self.channels, self.cell, self.reduction = channels, as_cell(cell), reduction
        if not self.cell.remembers:
            raise ValueError(
                f"cell: expected one with a state, got {self.cell.kind!r}; dla_kernels.nn.SE and ECA are its modules"
            )
        self.start, self.backend, self.dropout = start, backend, dropout
        for name, shape in weight_shapes(self.cell, channels, self.R).items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))
        if start == "learned":
            self.memory0 = nn.Parameter(torch.empty(channels))
        elif start == "random":
            self.register_buffer("memory0", torch.empty(channels))
        if layers > 1:
            dense = replace(self.cell, projection="dense")
            self.above = nn.ModuleList(
                CellModule(channels, dense, start=start, backend=backend) for _ in range(layers - 1)
            )
        self.reset_parameters()

    @property
    def stack(self) -> list[CellModule]:
        """The cells from this one, which is the first, upwards."""
        return [self, *getattr(self, "above", [])]

    @property
    def R(self) -> int:
        """Return the width of the bottleneck: C // r, of a light cell C // 2r."""
        return max(1, self.channels // (self.reduction * (2 if self.cell.projection == "light" else 1)))

    @property
    def weights(self) -> Weights:
        """Return the parameters as the ops take them."""
        projection = PROJECTIONS[self.cell.projection]
        return projection(*(getattr(self, name) for name in projection._fields))  # type: ignore[attr-defined]

    def reset_parameters(self) -> None:
        """Draw the weights as ``torch.nn.Linear`` does: uniform within 1 / sqrt(n), where a row sums over n terms."""
        bound = 0.0
        for weight in self.weights:
            if weight.dim() == 2:
                bound = weight.shape[1] ** -0.5  # also for its bias, which comes next if it has one
            nn.init.uniform_(weight, -bound, bound)
        if self.start == "learned":
            nn.init.zeros_(self.memory0)
        elif self.start == "random":
            nn.init.normal_(self.memory0)

    def initial_state(self, like: Tensor) -> tuple[Tensor, ...] | None:
        """Return the state before the first layer, [B, C] each, for ``like`` of batch B; None stands for zeros."""
        if self.start == "zeros":
            return None
        return tuple(s for cell in self.stack for s in cell._own_start(like))

    def _own_start(self, like: Tensor) -> tuple[Tensor, ...]:
        memory = self.memory0.to(accumulate_dtype(like.dtype)).expand(like.shape[0], -1)
        return tuple(
            memory if name == self.cell.state_names[-1] else torch.zeros_like(memory) for name in self.cell.state_names
        )

    def check_channels(self, name: str, x: Tensor, dim: int) -> None:
        if x.dim() > dim and x.shape[dim] != self.channels:
            raise ValueError(f"{name}: expected {self.channels} channels, got {list(x.shape)}")

    def output(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return what the cell shows of a state, the uppermost where there are several: [B, C], or whatever shape that
        has."""
        return output_of(self._shares(state)[-1], self.cell)

    def _shares(self, state: tuple[Tensor, ...] | None) -> list:
        """Return each cell's share of a state, the first one's first."""
        count = len(self.stack)
        if count == 1 or state is None:
            return [state] * count
        if not isinstance(state, (tuple, list)) or len(state) % count:
            got = f"{len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
            raise ValueError(f"state: expected as many tensors for each of {count} cells, got {got}")
        n = len(state) // count
        return [tuple(state[i * n : (i + 1) * n]) for i in range(count)]

    def _step(self, y: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        states = scan(y[None], self.weights, cell=self.cell, state=state, backend=self.backend)
        return tuple(s[0] for s in states)

    @leaf
    def forward(self, y: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Run one step: y [B, C] and a state, each [B, C] (None: the start) -> the new state."""
        if y.dim() != 2 or y.shape[1] != self.channels:
            raise ValueError(f"y: expected [B, {self.channels}], got {list(y.shape)}; ContextScan takes [T, B, C]")
        state = self.initial_state(y) if state is None else state
        own, *others = self._shares(state)
        made = after = self._step(y, own)
        for one, own in zip(self.stack[1:], others):
            h, _ = unpack_state(after, after[0], self.cell)
            after = one._step(F.dropout(h, self.dropout, self.training), own)
            made += after
        return made

    def extra_repr(self) -> str:
        width = "" if self.cell.projection == "dense" else f", R={self.R}"
        start = "" if self.start == "zeros" else f", start={self.start}"
        layers = "" if len(self.stack) == 1 else f", layers={len(self.stack)}"
        return f"{self.channels}, {self.cell.rule}, {self.cell.projection}{width}{layers}{start}"


class RNNCell(CellModule):
    """The cell that computes ``h = tanh(Wy y + by + Wh h + bh)``.

    >>> (h,) = RNNCell(64)(torch.randn(8, 64))
    """

    def __init__(self, channels: int, *, start: str = "zeros", backend: BackendName | None = None) -> None:
        super().__init__(channels, Cell("rnn"), start=start, backend=backend)


class LSTMCell(CellModule):
    """The LSTM, whose gates are i, f, g, o in this order; ``projection`` may also be ``"split"`` or ``"joint"``.

    >>> h, c = LSTMCell(64)(torch.randn(8, 64))
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        *,
        projection: str = "dense",
        start: str = "zeros",
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(channels, Cell("lstm", projection=projection), reduction, start=start, backend=backend)


class DIACell(CellModule):
    """The cell of DIANet: an LSTM behind two bottlenecks whose h is sig(o) sig(c).

    >>> h, c = DIACell(64)(torch.randn(8, 64))
    """

    def __init__(
        self, channels: int, reduction: int = 4, *, start: str = "zeros", backend: BackendName | None = None
    ) -> None:
        super().__init__(channels, Cell("dia"), reduction, start=start, backend=backend)


class DSUCell(CellModule):
    """The dynamic sharing unit of DLA, as in the paper (``"paper"``: one bottleneck, the context is the output) or as
    in the published code (``"released"``: two, and its sigmoid is).

    >>> (c,) = DSUCell(64)(torch.randn(8, 64))
    >>> DSUCell(64, 4, form="released")
    DSUCell(64, dsu-sigmoid-sigmoid, split, R=16)
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 20,
        *,
        form: str = "paper",
        act: str = "sigmoid",
        start: str = "zeros",
        backend: BackendName | None = None,
    ) -> None:
        forms = {"paper": ("context", "joint"), "released": ("sigmoid", "split")}
        if form not in forms:
            raise ValueError(f"form: expected one of {', '.join(forms)}, got {form!r}")
        output, projection = forms[form]
        super().__init__(channels, Cell("dsu", act, output, projection), reduction, start=start, backend=backend)


def make_cell(
    cell: Cell | KindName | str,
    channels: int,
    reduction: int = 4,
    *,
    start: str = "zeros",
    backend: BackendName | None = None,
) -> CellModule:
    """Make a cell by value or by the name of its kind.

    >>> make_cell("lstm", 64)
    CellModule(64, lstm, dense)
    """
    cell = as_cell(cell)
    return CellModule(channels, cell, reduction, start=start, backend=backend)


METHODS = ("forward", "output")  # which the ops do not call


def is_plain(cell: CellModule) -> bool:
    """Return whether the cell is one that the ops run by its rule."""
    own = all(getattr(type(cell), name) is getattr(CellModule, name) for name in METHODS)
    return own and len(cell.stack) == 1 and not is_watched(cell)


def check_cell_module(cell: object, *, is_called: bool = False) -> CellModule:
    """Return the cell. Unless the module itself is called, ops run its rule, whatever its methods do: it is to have no
    ``forward`` and no ``output`` of its own, which would be passed over in silence."""
    if not isinstance(cell, CellModule):
        raise TypeError(f"cell: expected a CellModule, such as DSUCell(channels), got {type(cell).__name__}")
    if len(cell.stack) > 1 and not is_called:
        raise TypeError(
            f"cell: expected one that the ops run by its rule, got {len(cell.stack)} stacked; "
            "LayerwiseIntegration takes these"
        )
    for name in () if is_called else METHODS:
        if getattr(type(cell), name) is not getattr(CellModule, name):
            raise TypeError(
                f"cell: expected one that the ops run by its rule, got a {type(cell).__name__} with a {name} of its "
                "own, which would not be called; LayerwiseIntegration calls it"
            )
    return cell
