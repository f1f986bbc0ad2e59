"""sigmoid and tanh are laid bare by cells of one channel whose weights leave nothing else."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels import Cell, Dense

from .cases import dtype_name
from .interpreter import interpreted

FLOATS = [torch.float32, torch.float64]
# How far from zero points lie, and how many units in the last place results may be off: exp's relative error grows with
# its argument.
MOST_ULPS = [(1e-6, 4), (1e-2, 4), (1.0, 4), (20.0, 4), (80.0, 8)]
EXTREMES = [0.0, -0.0, 1e-45, 1e-30, -1e-8, 88.0, -88.0, 710.0, -710.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]


def points(reach, n, dtype, backend):
    """Return n points; not so many where the interpreter takes milliseconds for each."""
    n = 401 if interpreted(backend) else n
    return torch.linspace(-reach, reach, n, dtype=dtype, device=backend.device)


def dense_weights(x, num_gates, wy, by):
    """Return weights of one channel, without a part for h."""
    return Dense(x.new_full((num_gates, 1), wy), x.new_tensor(by), x.new_zeros(num_gates, 1), x.new_zeros(num_gates))


def tanh(x, backend):
    weights = dense_weights(x, 1, 1.0, [0])
    (h,) = dla.scan(x.view(1, -1, 1), weights, cell=Cell("rnn"), backend=backend.name)
    return h.view(-1)


def sigmoid(x, backend):
    """Return the output sig(c) of a memory that keeps c: forget gate 1, input tanh(0)."""
    weights = dense_weights(x, 3, 0.0, [0, 100, 0])
    cell = Cell("dsu", output="sigmoid", projection="dense")
    y = x.new_zeros(1, len(x), 1)
    return dla.refresh(y, (x.view(-1, 1),), weights, cell=cell, backend=backend.name).view(-1)


def ulps(x, exact):
    """Return the error of x in units of its last place (of the smallest normal number's, below that)."""
    info = torch.finfo(x.dtype)
    unit = exact.abs().clamp_min(info.tiny).log2().floor().exp2() * info.eps
    return ((x.double() - exact) / unit).abs().max().item()


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("reach", "most"), MOST_ULPS)
@pytest.mark.parametrize("f", [tanh, sigmoid])
def test_sigmoid_and_tanh_are_accurate_to_a_few_units_in_the_last_place(backend, f, reach, most, dtype):
    """They are so near zero too, where 1 - 2 / (exp(2x) + 1) would have cancelled all of tanh's digits."""
    x = points(reach, 20_001, dtype, backend)
    # torch's own error in float64 is part of what is allowed there.
    exact = getattr(torch, f.__name__)(x.double())
    assert ulps(f(x, backend), exact) <= most


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("f", [tanh, sigmoid])
def test_sigmoid_and_tanh_of_extremes_are_those_of_torch(backend, f, dtype):
    x = torch.tensor(EXTREMES, dtype=dtype, device=backend.device)
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(f(x, backend), getattr(torch, f.__name__)(x), rtol=1e-6, atol=2 * tiny, equal_nan=True)


@pytest.mark.parametrize("f", [tanh, sigmoid])
def test_sigmoid_and_tanh_never_leave_their_range_and_never_fall(backend, f):
    y = f(points(100, 400_001, torch.float32, backend), backend)
    lowest = -1 if f is tanh else 0
    assert lowest <= y.min() <= y.max() <= 1
    # Neighbours may be swapped by rounding, never by more than their error.
    assert (y.diff() >= -4 * torch.finfo(torch.float32).eps).all()
