"""First and second derivatives through the compiled kernels match finite differences, in float64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from .calls import flat_function
from .cases import CELLS, FEW_CELLS, OPS, OPS_WITH_CELL, Shape, cell_name, inputs_of, options_of, state_forms
from .interpreter import interpreted, some

# Sizes hardly matter here, the number of tensors does: every pair of input and output is a pass. But the interpreter
# runs one program after the other, and every sample is one.
TINY = Shape.parse("T2-B2-C3-R2-HW2x1,1x1")
TINIEST = Shape.parse("T2-B1-C2-R1-HW2x1,1x1")


def checked(op, cell, backend, *, layout="nchw", form="default"):
    shape = TINIEST if interpreted(backend) else TINY
    inputs = inputs_of(op, shape, cell, torch.float64, layout=layout, form=form, device=backend.device)
    return flat_function(op, inputs, backend=backend.name, **options_of(op, cell))


@pytest.mark.parametrize("op", OPS)
def test_every_entry_of_the_jacobians_matches_finite_differences(backend, op):
    """This is the slow mode; the other tests look at a random projection. Second derivatives are torch's own work on
    every backend: those of a cell's many inputs would take the interpreter a fifth of all the suite's time."""
    f, inputs = checked(op, FEW_CELLS[0], backend)
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs, fast_mode=interpreted(backend) and op in OPS_WITH_CELL)


@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_first_derivatives_of_every_cell_from_every_state_match_finite_differences(backend, op, cell):
    for form in some(backend, (*state_forms(cell), *([] if op == "refresh" else [None])), 2):
        f, inputs = checked(op, cell, backend, form=form)
        assert gradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_second_derivatives_of_every_cell_match_finite_differences(backend, op, cell):
    f, inputs = checked(op, cell, backend)
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("op", ["scan", "layer_update"])
def test_second_derivatives_without_a_state_match_finite_differences(backend, op):
    f, inputs = checked(op, FEW_CELLS[1], backend, form=None)
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("op", ["gap", "rescale", "layer_update"])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "misaligned"])
def test_derivatives_in_every_layout_match_finite_differences(backend, op, layout):
    f, inputs = checked(op, FEW_CELLS[0], backend, layout=layout, form=None if op == "layer_update" else "default")
    assert gradcheck(f, inputs, fast_mode=True)
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives_of_one_input_alone_match_finite_differences(backend, op):
    """The double backward is right with most of its inputs not asked for."""
    f, inputs = checked(op, FEW_CELLS[2], backend)
    for i in some(backend, range(len(inputs)), 3):
        fixed = [x.detach() for x in inputs]

        def of_one(x, i=i, fixed=fixed):
            return f(*fixed[:i], x, *fixed[i + 1 :])

        assert gradgradcheck(of_one, inputs[i], fast_mode=True)
