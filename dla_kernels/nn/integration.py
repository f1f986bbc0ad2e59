"""Layer-wise integration (LII): one cell along the depth of a stage recalibrates each block's residual branch."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import gap, rescale
from .cells import CellModule, check_cell_module
from .leaf import leaf


class LayerwiseIntegration(nn.Module):
    """The sum ``x_{t+1} = x_t + a_t h_t``, h_t being what the cell makes of the mean of a_t: DIANet with a ``DIACell``.

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
        self, x: Tensor, a: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a block: x, a [B, C, H, W] and the state after the one before (None: the first) -> x + a h, the new
        state."""
        self.cell.check_channels("a", a, 1)
        backend = self.cell.backend
        state = self.cell(gap([a], backend=backend)[0], state)
        (recalibrated,) = rescale([a], self.cell.output(state)[None], backend=backend)
        return x + recalibrated, state
