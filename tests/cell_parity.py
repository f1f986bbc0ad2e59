"""This module has what every op that runs a cell over all layers is asked; a file of such an op inherits it."""

import pytest
import torch

from .calls import check_parity
from .cases import (
    CELLS,
    DTYPES,
    FEW_CELLS,
    MIDDLE,
    SHAPES,
    WIDE,
    cell_name,
    dtype_name,
    inputs_of,
    state_forms,
)

with_full_precision = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
with_few_cells = pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)


class CellParity:
    """The parity of one op with the reference."""

    op: str
    starts_by_itself = True  # without a state

    def check(self, backend, shape, cell, dtype, **options):
        inputs = inputs_of(self.op, shape, cell, dtype, device=backend.device, **options)
        check_parity(self.op, backend, inputs, shape.longest_sum, cell=cell)

    @with_full_precision
    @pytest.mark.parametrize("cell", CELLS, ids=cell_name)
    def test_parity_of_every_cell_from_every_state(self, backend, cell, dtype):
        for form in (*[None] * self.starts_by_itself, *state_forms(cell)):
            self.check(backend, MIDDLE, cell, dtype, form=form)

    @pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @with_few_cells
    def test_parity_at_every_shape(self, backend, cell, shape, dtype):
        self.check(backend, shape, cell, dtype)

    @with_full_precision
    @with_few_cells
    def test_parity_where_weights_outgrow_the_cache(self, backend, cell, dtype):
        self.check(backend, WIDE[cell.projection], cell, dtype)
