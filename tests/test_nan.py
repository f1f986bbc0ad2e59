"""NaN and infinity in one sample stay in that sample."""

import math

import pytest
import torch

import dla_kernels as dla

from .calls import cotangents_for, mapped, outcome
from .cases import FEW_CELLS, MIDDLE, OPS, OPS_WITH_CELL, inputs_of, options_of
from .tolerances import assert_same_bits

BAD = 1  # the sample that is spoilt, of MIDDLE.B


def spoil(value):
    """Puts a value into one element of sample BAD of every tensor with a batch dimension."""

    def spoil_one(x):
        x = x.clone()
        if x.dim() == 4:
            x[BAD, 3, 0, 0] = value
        elif tuple(x.shape) == (MIDDLE.T, MIDDLE.B, MIDDLE.C):
            x[1, BAD, 3] = value
        elif tuple(x.shape) == (MIDDLE.B, MIDDLE.C):
            x[BAD, 3] = value
        return x

    return spoil_one


def other_samples(x):
    keep = [b for b in range(MIDDLE.B) if b != BAD]
    return x[keep] if x.dim() in (2, 4) else x[:, keep]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_the_other_samples_never_notice(backend, op, layout, value):
    for cell in FEW_CELLS if op in OPS_WITH_CELL else [None]:
        inputs = inputs_of(op, MIDDLE, cell, torch.float32, layout=layout, device=backend.device)
        options = options_of(op, cell)
        given = cotangents_for(op, inputs, **options)
        clean = outcome(getattr(dla, op), inputs, given, backend=backend.name, **options)
        spoilt = outcome(getattr(dla, op), mapped(spoil(value), inputs), given, backend=backend.name, **options)
        for name, result in spoilt.items():
            if not name.startswith("d weights"):
                assert_same_bits(other_samples(result), other_samples(clean[name]), name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", OPS)
def test_the_spoilt_sample_is_as_in_the_reference(backend, op, value):
    for cell in FEW_CELLS if op in OPS_WITH_CELL else [None]:
        inputs = mapped(spoil(value), inputs_of(op, MIDDLE, cell, torch.float64, device=backend.device))
        options = options_of(op, cell)
        ours = outcome(getattr(dla, op), inputs, backend=backend.name, **options)
        reference = outcome(getattr(dla.reference, op), inputs, **options)
        for name, result in ours.items():
            torch.testing.assert_close(result, reference[name], rtol=1e-10, atol=1e-10, equal_nan=True)
