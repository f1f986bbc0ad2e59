"""Layer-wise integration (LII): one cell along the depth of a stage recalibrates each block's residual branch."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import gap, rescale
from .cells import CellModule, check_cell_module, is_plain
from .leaf import leaf
from .recalibration import ended, recalibrated


class LayerwiseIntegration(nn.Module):
    """The sum ``x_{t+1} = x_t + a_t h_t``, h_t being what the cell makes of the mean of a_t: DIANet with a ``DIACell``.
    With ``relu`` also the relu that follows it in a network.

    >>> integrate = LayerwiseIntegration(DIACell(64))
    >>> x, state = torch.randn(8, 64, 16, 16), None
    >>> for _ in range(3):
    ...     a = torch.randn(8, 64, 16, 16)  # a block's residual branch
    ...     x, state = integrate(x, a, state)
    >>> x.shape
    torch.Size([8, 64, 16, 16])
    """

    def __init__(self, cell: CellModule) -> None:
        super().__init__()
        self.cell = check_cell_module(cell, is_called=True)

    @leaf
    def forward(
        self,
        x: Tensor | None,
        a: Tensor,
        state: tuple[Tensor, ...] | None = None,
        *,
        relu: bool = False,
        inplace: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a block: x, a [B, C, H, W] and the state after the one before (None: the first) -> x + a h, or its relu,
        and the new state. Without x nothing is added. inplace: x is not needed any more, and may be written over where
        no gradient is."""
        cell, backend = self.cell, self.cell.backend
        cell.check_channels("a", a, 1)
        if is_plain(cell):
            state = cell.initial_state(a) if state is None else state
            return recalibrated(a, x, cell.weights, cell.cell, state, relu, backend, inplace)
        state = cell(gap([a], backend=backend)[0], state)
        (scaled,) = rescale([a], cell.output(state)[None], backend=backend)
        return ended(scaled, x, relu), state
