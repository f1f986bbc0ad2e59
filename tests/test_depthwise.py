"""``depthwise`` makes the value of layer attention: a 3x3 filter per channel, and the means on both of its sides."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

import dla_kernels as dla

from .calls import check_parity, cotangents_for, outcome
from .cases import DTYPES, LAYOUTS, SHAPES, Shape, dtype_name, inputs_of, lay_out
from .interpreter import some
from .tolerances import allowed_error, assert_same_bits, error, largest

# Sizes with a border everywhere: one row, column or pixel; rows that fill a vector, or a vector and a pixel; many rows.
BORDERS = ["1x1", "1x9", "9x1", "2x2", "3x5", "7x7", "4x16", "5x17", "33x6", "10x67"]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_at_every_shape(backend, shape, dtype):
    inputs = inputs_of("depthwise", shape, None, dtype, device=backend.device)
    check_parity("depthwise", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("size", BORDERS)
def test_parity_at_every_border(backend, size, layout):
    for C in some(backend, (1, 3, 18), 1):
        shape = Shape.parse(f"T1-B2-C{C}-HW{size}")
        for dtype in some(backend, (torch.float64, torch.float32), 1):
            inputs = inputs_of("depthwise", shape, None, dtype, layout=layout, device=backend.device)
            check_parity("depthwise", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_in_every_layout(backend, layout, dtype):
    shape = Shape.parse("T1-B3-C19-HW5x3")
    inputs = inputs_of("depthwise", shape, None, dtype, layout=layout, device=backend.device)
    check_parity("depthwise", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("size", ["1x65536", "2x9000", "300x300"])
def test_long_sums_stay_exact(backend, size, layout):
    """Where nothing cancels, each filter tap's gradient is a sum of all pixels; torch.sum adds them in pairs."""
    H, W = map(int, size.split("x"))
    if backend.name != "cpu":
        H, W = max(1, H // 32), max(1, W // 32)
    torch.manual_seed(0)
    x, g = (torch.rand(1, 3, H, W, device=backend.device) * 0.5 + 0.5 for _ in range(2))
    v = torch.randn(3, 1, 3, 3, device=backend.device, requires_grad=True)

    def sums(x, g):
        around = F.pad(x, (1, 1, 1, 1))
        taps = product(range(3), repeat=2)
        return torch.stack([(g * around[..., i : i + H, j : j + W]).sum((0, 2, 3)) for i, j in taps])

    exact = sums(x.double(), g.double())
    value, _ = dla.depthwise(lay_out([x], layout)[0], v, backend=backend.name)
    ours = torch.autograd.grad(value, v, g)[0].flatten(1).t()
    assert error(ours, exact) <= allowed_error(torch.float32, error(sums(x, g), exact), largest(exact), H * W)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("size", ["2x1", "3x3", "2x4", "3x7", "2x8", "3x16"])
def test_nan_and_inf_stay_in_their_channel(backend, size, value):
    """Narrow planes share vectors with those of other channels."""
    shape = Shape.parse(f"T1-B1-C3-HW{size}")
    inputs = inputs_of("depthwise", shape, None, torch.float32, device=backend.device)
    cotangents = cotangents_for("depthwise", inputs)
    healthy = outcome(dla.depthwise, inputs, cotangents, backend=backend.name)
    for channel in some(backend, (0, 1), 1):
        for pixel in some(backend, range(shape.sizes[0][0] * shape.sizes[0][1]), 2):
            sick = {name: x.clone() for name, x in inputs.items()}
            sick["x"][0, channel].view(-1)[pixel] = value
            found = outcome(dla.depthwise, sick, cotangents, backend=backend.name)
            for name, x in found.items():
                C = {"out[1]": 2, "d v": 0}.get(name, 1)  # the dimension of channels
                for other in {0, 1, 2} - {channel}:
                    assert_same_bits(x.select(C, other), healthy[name].select(C, other), f"{name}, channel {other}")


def test_parity_where_channels_of_single_pixels_lie_apart(backend):
    """Gradients arrive side by side there, so that one of the two maps has its channels as neighbours."""
    inputs = inputs_of("depthwise", Shape.parse("T1-B2-C9-HW1x1"), None, torch.float32, device=backend.device)
    inputs["x"] = torch.randn(2, 18, 1, 1).to(backend.device)[:, ::2]
    check_parity("depthwise", backend, inputs, longest_sum=9)
