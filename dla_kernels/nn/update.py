"""Modules that take a whole stage at once, for those who have all its layers' maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops import layer_update, scan
from .cells import CellModule, check_cell_module
from .leaf import leaf


class ContextScan(nn.Module):
    """A module that runs a cell over the layers (Eq. 5).

    >>> states = ContextScan(DSUCell(64))(torch.randn(6, 8, 64))  # y [T, B, C]
    >>> [s.shape for s in states]
    [torch.Size([6, 8, 64])]
    """

    def __init__(self, cell: CellModule) -> None:
        super().__init__()
        self.cell = check_cell_module(cell)

    @leaf
    def forward(self, y: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Run the cell: y [T, B, C] -> the states after each layer, [T, B, C] each."""
        cell = self.cell
        cell.check_channels("y", y, 2)
        state = cell.initial_state(y[0]) if state is None else state
        return scan(y, cell.weights, cell=cell.cell, state=state, backend=cell.backend)


class LayerUpdate(nn.Module):
    """A module that refreshes all maps of a stage by the context of its last layer (Eq. 4 to 6), in one launch.

    >>> maps = LayerUpdate(DSUCell(64))([torch.randn(8, 64, 16, 16) for _ in range(6)])
    >>> len(maps), maps[0].shape
    (6, torch.Size([8, 64, 16, 16]))
    """

    def __init__(self, cell: CellModule, *, inplace: bool = False) -> None:
        super().__init__()
        self.cell, self.inplace = check_cell_module(cell), inplace

    @leaf
    def forward(self, xs: Sequence[Tensor], state: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """Refresh T maps [B, C, H, W], H and W of each its own -> as many refreshed ones."""
        cell = self.cell
        for t, x in enumerate(xs):
            cell.check_channels(f"xs[{t}]", x, 1)
        if state is None and len(xs):
            state = cell.initial_state(xs[0])
        maps, _ = layer_update(
            xs, cell.weights, cell=cell.cell, state=state, inplace=self.inplace, backend=cell.backend
        )
        return maps

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""
