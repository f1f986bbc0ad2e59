"""``refresh`` is ``d_t = Dyn(y_t, c_T)`` for all t at once, output only."""

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_parity_of_every_cell_from_every_state(backend, cell, dtype):
    for form in state_forms(cell):
        inputs = inputs_of("refresh", MIDDLE, cell, dtype, form=form, device=backend.device)
        check_parity("refresh", backend, inputs, MIDDLE.longest_sum, cell=cell)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_parity_at_every_shape(backend, cell, shape, dtype):
    inputs = inputs_of("refresh", shape, cell, dtype, device=backend.device)
    check_parity("refresh", backend, inputs, shape.longest_sum, cell=cell)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_parity_where_weights_outgrow_the_cache(backend, cell, dtype):
    shape = WIDE[cell.projection]
    inputs = inputs_of("refresh", shape, cell, dtype, device=backend.device)
    check_parity("refresh", backend, inputs, shape.longest_sum, cell=cell)
