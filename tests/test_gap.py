"""``gap`` is ``y_t = mean over HW of x_t``."""

import pytest
import torch

import dla_kernels as dla

from .calls import check_parity
from .cases import DTYPES, HALVES, LAYOUT_NAMES, MIDDLE, SHAPES, Shape, dtype_name, inputs_of, lay_out


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_at_every_shape(backend, shape, dtype):
    check_parity("gap", backend, inputs_of("gap", shape, None, dtype, device=backend.device), shape.longest_sum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("C", [3, 6, 8])
def test_parity_where_samples_begin_off_and_on_a_vector(backend, C, dtype):
    """The second begins after 33, 66 or 88 pixels."""
    shape = Shape.parse(f"T1-B2-C{C}-HW11x1")
    check_parity("gap", backend, inputs_of("gap", shape, None, dtype, device=backend.device), shape.longest_sum)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_parity_of_as_many_channels_as_pixels(backend, layout):
    """The stride between pixels of the one is then that between channels of the other."""
    shape = Shape.parse("T1-B1-C15-HW5x3")
    inputs = inputs_of("gap", shape, None, torch.float32, layout=layout, device=backend.device)
    check_parity("gap", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    inputs = inputs_of("gap", MIDDLE, None, dtype, layout=layout, device=backend.device)
    check_parity("gap", backend, inputs, MIDDLE.longest_sum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("fill", [lambda x: x.fill_(0.1), lambda x: x.uniform_()], ids=["constant", "uniform"])
def test_parity_of_a_long_sum_of_one_sign(backend, fill, layout, dtype):
    """A naive running sum over many pixels drifts away from the mean; plain PyTorch's does not."""
    (x,) = lay_out([fill(torch.empty(2, 5, 150, 149)).to(backend.device, dtype)], layout)
    check_parity("gap", backend, {"xs": [x]}, longest_sum=150 * 149)


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
def test_halves_are_summed_in_float32(backend, dtype):
    """The sum of these pixels is past the largest float16, and 2^12 of them stall a bfloat16 sum."""
    x = torch.full((1, 2, 64, 65), 60000.0, dtype=dtype, device=backend.device)
    y = dla.gap([x], backend=backend.name)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x[None, :, :, 0, 0].float(), rtol=1e-6, atol=0)


def test_subnormal_maps_are_not_flushed(backend):
    x = torch.full((1, 1, 3, 3), 1e-40, device=backend.device)
    torch.testing.assert_close(dla.gap([x], backend=backend.name).item(), x[0, 0, 0, 0].item(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "given", [torch.ones(1, 2, 3, 3), 5, iter([torch.ones(1, 2, 3, 3)])], ids=["map", "number", "iterator"]
)
def test_maps_come_as_a_list(given):
    with pytest.raises(TypeError, match=r"xs: expected a list of maps \[B, C, H, W\], got (Tensor|int|list_iterator)"):
        dla.gap(given)
