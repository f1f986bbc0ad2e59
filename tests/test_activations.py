"""sigmoid and tanh, laid bare: a dense cell of one channel with weight 1 is the function itself."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels import Cell, Dense

from .cases import dtype_name

MOST_ULPS = {torch.float32: 4, torch.float64: 8}
EXTREMES = [0.0, -0.0, 1e-45, 1e-30, -1e-8, 88.0, -88.0, 710.0, -710.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]


def tanh(x, backend):
    zero = x.new_zeros(1)
    weights = Dense(x.new_ones(1, 1), zero, x.new_zeros(1, 1), zero)
    (h,) = dla.scan(x.view(1, -1, 1), weights, cell=Cell("rnn"), backend=backend.name)
    return h.view(-1)


def sigmoid(x, backend):
    """The forget gate acting on c = 1, with g = tanh(0)."""
    zeros = x.new_zeros(3)
    weights = Dense(torch.tensor([[0], [1], [0]]).to(x), zeros, x.new_zeros(3, 1), zeros)
    start = (x.new_ones(len(x), 1),)
    (c,) = dla.scan(x.view(1, -1, 1), weights, cell=Cell("dsu", projection="dense"), state=start, backend=backend.name)
    return c.view(-1)


def ulps(x, exact):
    """The error of x in units of its last place (of the smallest normal number's, below that)."""
    info = torch.finfo(x.dtype)
    unit = exact.abs().clamp_min(info.tiny).log2().floor().exp2() * info.eps
    return ((x.double() - exact) / unit).abs().max().item()


@pytest.mark.parametrize("dtype", MOST_ULPS, ids=dtype_name)
@pytest.mark.parametrize("reach", [1e-6, 1e-2, 1.0, 20.0, 80.0])
@pytest.mark.parametrize("f", [tanh, sigmoid])
def test_accurate_to_a_few_units_in_the_last_place(backend, f, reach, dtype):
    """Near zero too, where 1 - 2 / (exp(2x) + 1) would have cancelled all of tanh's digits."""
    x = torch.linspace(-reach, reach, 20_001, dtype=dtype, device=backend.device)
    # float64 against itself: its own error is part of what MOST_ULPS allows.
    exact = getattr(torch, f.__name__)(x.double())
    assert ulps(f(x, backend), exact) <= MOST_ULPS[dtype]


@pytest.mark.parametrize("dtype", MOST_ULPS, ids=dtype_name)
@pytest.mark.parametrize("f", [tanh, sigmoid])
def test_extremes_are_as_in_torch(backend, f, dtype):
    x = torch.tensor(EXTREMES, dtype=dtype, device=backend.device)
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(
        f(x, backend), getattr(torch, f.__name__)(x), rtol=1e-6, atol=2 * tiny, equal_nan=True
    )


@pytest.mark.parametrize("f", [tanh, sigmoid])
def test_never_leaves_its_range_and_never_falls(backend, f):
    y = f(torch.linspace(-100, 100, 400_001, device=backend.device), backend)
    lowest = -1 if f is tanh else 0
    assert lowest <= y.min() <= y.max() <= 1
    # Neighbours may be swapped by rounding, never by more than their error.
    assert (y.diff() >= -MOST_ULPS[torch.float32] * torch.finfo(torch.float32).eps).all()
