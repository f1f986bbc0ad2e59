"""``rescale`` is ``x_t <- x_t * d_t``, broadcast over HW: one product and one rounding, so that forward is exact."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS

from .calls import check_parity
from .cases import DTYPES, HALVES, LAYOUT_NAMES, MIDDLE, SHAPES, dtype_name, inputs_of, lay_out
from .tolerances import allowed_error, assert_same_bits, error, largest


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_at_every_shape(backend, shape, dtype):
    inputs = inputs_of("rescale", shape, None, dtype, device=backend.device)
    check_parity("rescale", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    inputs = inputs_of("rescale", MIDDLE, None, dtype, layout=layout, device=backend.device)
    check_parity("rescale", backend, inputs, MIDDLE.longest_sum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_long_sum_of_one_sign_stays_exact(backend, layout, dtype):
    """dd sums dout * x over the pixels; here the running sum grows to the end."""
    xs = lay_out([torch.rand(2, 5, 150, 149).to(backend.device, dtype)], layout)
    d = torch.rand(1, 2, 5, device=backend.device)
    ones = [torch.ones_like(xs[0])]
    _, dd = BACKENDS[backend.name].ops.rescale_bwd(ones, xs, d)
    exact = xs[0].double().sum((2, 3))
    plain_error = error(xs[0].float().sum((2, 3)), exact)
    assert error(dd[0], exact) <= allowed_error(torch.float32, plain_error, largest(exact), 150 * 149)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_forward_is_exact(backend, layout, dtype):
    inputs = inputs_of("rescale", MIDDLE, None, dtype, layout=layout, device=backend.device)
    for ours, exact in zip(dla.rescale(**inputs, backend=backend.name), dla.reference.rescale(**inputs)):
        assert_same_bits(ours, exact)


def every_half(dtype):
    """Return all 2^16 values, as one map: zeros, subnormals, infinities and NaN among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, 256, 256)


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
@pytest.mark.parametrize("factor", [1.0, -1.0, 1 / 3, 1.5, 3e4, 1e-5, 1e38, 1e-40, 0.0, torch.inf, torch.nan])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_every_half_is_rounded_as_torch_rounds(backend, dtype, factor, layout):
    x = every_half(dtype).expand(1, 3, 256, 256).to(backend.device)
    x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    d = torch.full((1, 1, 3), factor, device=backend.device)
    (out,) = dla.rescale([x], d, backend=backend.name)
    assert_same_bits(out, (x.float() * factor).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -0x7FFFFF])
def test_no_nan_rounds_to_a_number(backend, dtype, bits):
    """Adding a rounding bit to 0x7FFFFFFF would carry into the sign and give -0."""
    nan = torch.full((1, 1, 20), bits, dtype=torch.int32, device=backend.device).view(torch.float32)
    (out,) = dla.rescale([torch.ones(1, 20, 3, 3, dtype=dtype, device=backend.device)], nan, backend=backend.name)
    assert out.isnan().all()


def test_subnormal_products_are_not_flushed(backend):
    x = torch.full((1, 1, 3, 3), 1e-30, device=backend.device)
    d = torch.full((1, 1, 1), 1e-10, device=backend.device)
    (out,) = dla.rescale([x], d, backend=backend.name)
    assert_same_bits(out, x * 1e-10)
    assert torch.tensor(1e-40, device=backend.device).mul(1.0) > 0, "the process flushes subnormals from now on"
