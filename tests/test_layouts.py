"""Every map comes back with the dtype and the memory layout it came with, and so does its gradient."""

import pytest
import torch

import dla_kernels as dla

from .cases import DTYPES, FEW_CELLS, LAYOUT_NAMES, MIDDLE, Shape, dtype_name, inputs_of, nchw, options_of

CELL = FEW_CELLS[0]
# Where sizes are 1, strides are ambiguous: many of them describe the same memory.
DEGENERATE = [Shape.parse(name) for name in ("T2-B1-C5-HW3x2", "T2-B3-C1-HW3x2", "T2-B3-C5-HW1x1", "T2-B2-C3-HW1x4")]


def maps_of(result):
    return result[0] if isinstance(result, tuple) else result


def assert_like(ours, x):
    """Check that ours lies as torch lays out its own elementwise results: with x's strides where x has no gaps."""
    assert ours.dtype == x.dtype
    assert ours.shape == x.shape
    assert ours.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_results_and_gradients_keep_the_layout(backend, op, layout, dtype):
    inputs = inputs_of(op, MIDDLE, CELL, dtype, layout=layout, device=backend.device)
    xs = [x.requires_grad_() for x in inputs["xs"]]
    out = maps_of(getattr(dla, op)(**inputs, backend=backend.name, **options_of(op, CELL)))
    grads = torch.autograd.grad(sum(x.sum() for x in out), xs)
    for x, ours, grad in zip(xs, out, grads):
        assert_like(ours, x)
        assert_like(grad, x)


def channels_innermost(x):
    """Return x channels last, of whose strides torch leaves those that are ambiguous as they were."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@pytest.mark.parametrize("layout", [nchw, channels_innermost])
@pytest.mark.parametrize("shape", DEGENERATE, ids=str)
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_strides_of_dimensions_of_size_one_are_those_of_torch(backend, op, shape, layout):
    inputs = inputs_of(op, shape, CELL, torch.float32, device=backend.device)
    inputs["xs"] = [layout(x) for x in inputs["xs"]]
    out = maps_of(getattr(dla, op)(**inputs, backend=backend.name, **options_of(op, CELL)))
    for x, ours in zip(inputs["xs"], out):
        assert_like(ours, x)
        assert ours.is_contiguous(memory_format=torch.channels_last) == torch.empty_like(x).is_contiguous(
            memory_format=torch.channels_last
        )


@pytest.mark.parametrize("outside", ["nchw", "channels_last", "sliced", "constant_planes", "transposed"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_gradients_may_arrive_in_another_layout(backend, op, layout, outside):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float64, layout=layout, device=backend.device)
    arriving = inputs_of("gap", MIDDLE, None, torch.float64, layout=outside, device=backend.device)["xs"]
    xs = [x.requires_grad_() for x in inputs["xs"]]
    options = options_of(op, CELL)
    ours = torch.autograd.grad(maps_of(getattr(dla, op)(**inputs, backend=backend.name, **options)), xs, arriving)
    exact = torch.autograd.grad(maps_of(getattr(dla.reference, op)(**inputs, **options)), xs, arriving)
    for mine, theirs in zip(ours, exact):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("shape", [(3, 1, 1, 8), (5, 1, 1, 8), (1, 3, 1, 8), (2, 4, 3, 5)], ids=str)
@pytest.mark.parametrize("op", ["rescale", "depthwise", "mix"])
def test_windows_that_share_memory_are_read_as_their_copies(backend, op, shape):
    """A tensor like such a window lies in another order than the window is read in."""
    B, C, H, W = shape
    memory = torch.randn(B + C * H * W, device=backend.device)
    x = memory.as_strided(shape, (1, 1 if C > 1 and B == 1 else H * W, W, 1))
    d, v = torch.randn(1, B, C, device=backend.device), torch.randn(C, 1, 3, 3, device=backend.device)
    calls = {
        "rescale": lambda x: dla.rescale([x], d, backend=backend.name)[0],
        "depthwise": lambda x: dla.depthwise(x, v, backend=backend.name)[0],
        "mix": lambda x: dla.mix([x], d, backend=backend.name)[0],
    }
    ours, exact = calls[op](x), calls[op](x.clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(ours, exact)
    assert_like(ours, x)
