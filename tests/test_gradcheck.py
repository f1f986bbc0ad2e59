"""First and second derivatives through the compiled kernels against finite differences, in float64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from .calls import flat_function
from .cases import CELLS, FEW_CELLS, OPS, OPS_WITH_CELL, SMALL, Shape, cell_name, inputs_of, options_of, state_forms

# The slow mode looks at every entry of the Jacobian.
TINY = Shape.parse("T2-B2-C3-R2-HW2x1,1x1")


def checked(op, cell, backend, shape, *, layout="nchw", form="default"):
    inputs = inputs_of(op, shape, cell, torch.float64, layout=layout, form=form, device=backend.device)
    return flat_function(op, inputs, backend=backend.name, **options_of(op, cell))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_every_entry(backend, op, cell):
    f, inputs = checked(op, cell, backend, TINY)
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_every_cell(backend, op, cell):
    for form in (*state_forms(cell), *([] if op == "refresh" else [None])):
        f, inputs = checked(op, cell, backend, SMALL, form=form)
        assert gradcheck(f, inputs, fast_mode=True)
        assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("op", ["gap", "rescale", "layer_update"])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "misaligned", "mixed"])
def test_every_layout(backend, op, layout):
    f, inputs = checked(op, FEW_CELLS[1], backend, SMALL, layout=layout)
    assert gradcheck(f, inputs, fast_mode=True)
    assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives_of_one_input_alone(backend, op):
    """The double backward with most of its inputs not asked for."""
    f, inputs = checked(op, FEW_CELLS[2], backend, TINY)
    for i in range(len(inputs)):
        fixed = [x.detach() for x in inputs]

        def of_one(x, i=i, fixed=fixed):
            return f(*fixed[:i], x, *fixed[i + 1 :])

        assert gradgradcheck(of_one, inputs[i], fast_mode=True)
