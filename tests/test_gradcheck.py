"""Numerical against analytical gradients, first and second order, through the compiled kernels in float64."""

import pytest
import torch

from .calls import flat_function
from .cases import CELLS, FEW_CELLS, OPS, OPS_WITH_CELL, Shape, cell_name, inputs_of, options_of, state_forms

TINY = Shape.parse("T2-B2-C3-R2-HW2x2,1x1")


def check(op, backend, cell, form, fast_mode):
    inputs = inputs_of(op, TINY, cell, torch.float64, layout="mixed", form=form, device=backend.device)
    function, leaves = flat_function(op, inputs, backend=backend.name, **options_of(op, cell))
    assert torch.autograd.gradcheck(function, leaves, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=fast_mode)


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize("op", OPS_WITH_CELL)
def test_every_cell(backend, op, cell):
    forms = state_forms(cell) if op == "refresh" else (None, *state_forms(cell))
    for form in forms:
        check(op, backend, cell, form, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_every_derivative_by_itself(backend, op):
    for cell in FEW_CELLS if op in OPS_WITH_CELL else [None]:
        check(op, backend, cell, "default", fast_mode=False)
