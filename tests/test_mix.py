"""``mix`` is a sum of maps, each with a factor for every sample and channel."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS

from .calls import check_parity
from .cases import DTYPES, LAYOUT_NAMES, MIDDLE, SHAPES, Shape, dtype_name, inputs_of
from .stages import check_moments
from .tolerances import assert_same_bits

DEEP = Shape.parse("T36-B2-C17-HW3x3")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", [*SHAPES, DEEP], ids=str)
def test_parity_at_every_shape(backend, shape, dtype):
    check_parity("mix", backend, inputs_of("mix", shape, None, dtype, device=backend.device), shape.longest_sum)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    inputs = inputs_of("mix", MIDDLE, None, dtype, layout=layout, device=backend.device)
    check_parity("mix", backend, inputs, MIDDLE.longest_sum)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_moments_are_those_of_the_output(backend, dtype, layout):
    for shape in (MIDDLE, SHAPES[6], SHAPES[0]):
        inputs = inputs_of("mix", shape, None, dtype, layout=layout, device=backend.device)
        inputs["values"][0] += 30  # a mean far from zero
        o, moments = dla.mix(**inputs, moments=True, backend=backend.name)
        assert_same_bits(o, dla.mix(**inputs, backend=backend.name)[0])
        check_moments(moments, o)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed"])
def test_the_backward_pass_adds_the_gradients_of_later_layers(backend, layout):
    """Autograd would otherwise add them up: dvalues = later + coef dout."""
    inputs = inputs_of("mix", MIDDLE, None, torch.float64, layout=layout, device=backend.device)
    values, coef = inputs["values"], inputs["coef"]
    dout, later = torch.randn_like(values[0]), [torch.randn_like(v) for v in values]
    kernels = BACKENDS[backend.name].ops
    own, dcoef = kernels.mix_bwd(dout, [], values, coef)
    dvalues, again = kernels.mix_bwd(dout, later, values, coef)
    assert_same_bits(dcoef, again)
    for v, more, alone in zip(dvalues, later, own):
        torch.testing.assert_close(v, more + alone)
        assert v.stride() == more.stride()
