"""``attend`` tells what a layer has of each before it: a softmax over layers, keys and scales refreshed on the way."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels import reference

from .calls import check_parity
from .cases import SHAPES, Shape, dtype_name, inputs_of

OP = "attend"
ROWS = (torch.float64, torch.float32)
PASTS = {"first": 0, "without a cell": 2, "refreshed": 3}
SHAPE_AND_PAST = [(shape, past) for shape in SHAPES for past in PASTS]
SHAPE_AND_PAST += [(Shape.parse("T36-B2-C64-HW1x1"), past) for past in PASTS if PASTS[past]]


@pytest.mark.parametrize(("shape", "past"), SHAPE_AND_PAST, ids=str)
@pytest.mark.parametrize("dtype", ROWS, ids=dtype_name)
def test_parity_at_every_shape(backend, shape, dtype, past):
    inputs = inputs_of(OP, shape, None, dtype, device=backend.device)
    inputs["past"] = inputs["past"][: PASTS[past]]
    check_parity(OP, backend, inputs, shape.longest_sum, heads=1)


@pytest.mark.parametrize(("C", "D"), [(64, 16), (64, 32), (64, 64), (6, 1), (2048, 32)])
def test_parity_with_any_number_of_heads(backend, C, D):
    shape = Shape.parse(f"T3-B2-C{C}-HW1x1")
    for dtype in ROWS:
        check_parity(
            OP, backend, inputs_of(OP, shape, None, dtype, device=backend.device), shape.longest_sum, heads=C // D
        )


@pytest.mark.parametrize(("C", "K"), [(1, 3), (2, 7), (5, 9)])
def test_parity_of_filters_wider_than_the_channels(backend, C, K):
    """Beyond the channels are zeros, not those of another sample."""
    for dtype in ROWS:
        inputs = inputs_of(OP, Shape.parse(f"T3-B3-C{C}-HW1x1"), None, dtype, device=backend.device)
        inputs |= {name: torch.randn(K).to(backend.device, dtype) for name in ("q", "k")}
        check_parity(OP, backend, inputs, K * C, heads=1)


def test_large_scores_do_not_overflow(backend):
    inputs = inputs_of(OP, Shape.parse("T5-B3-C16-HW1x1"), None, torch.float32, device=backend.device)
    inputs["past"][0] *= 1e3
    inputs["y"] *= 1e3
    ours = dla.attend(**inputs, heads=2, backend=backend.name)
    torch.testing.assert_close(ours, reference.attend(**inputs, heads=2))
    assert ours[0].isfinite().all()


@pytest.mark.parametrize("wrong", ["tensor", "one", "iterator", "rows", "d"])
def test_errors_say_what_was_expected_and_what_came(wrong):
    inputs = inputs_of(OP, Shape.parse("T2-B2-C6-HW1x1"), None, torch.float32)
    keys, scale, d = inputs["past"]
    past, words = {
        "tensor": (keys, "past: expected .*, got Tensor"),
        "one": ((keys,), "past: expected .*, got 1 tensors"),
        "iterator": (iter(()), r"past: expected \(\), \(keys, scale\) or \(keys, scale, d\), got tuple_iterator"),
        "rows": ((keys, scale[:1]), r"past\[1\]: expected \[2, 2, 6\], got \[1, 2, 6\]"),
        "d": ((keys, scale, d[:2]), r"past\[2\]: expected \[4, 2, 6\], got \[2, 2, 6\]"),
    }[wrong]
    with pytest.raises(ValueError, match=words):
        dla.attend(**inputs | {"past": past}, heads=2)


def test_gradients_are_exact_where_one_coefficient_is_nearly_one():
    """The gradients are of the size of the small coefficients, and on the CPU their errors are too. Plain PyTorch and
    the other backends subtract two nearly equal numbers, with errors of the size of the large coefficient."""
    inputs = inputs_of(OP, Shape.parse("T3-B2-C16-HW1x1"), None, torch.float32)
    y, q, past = inputs["y"], inputs["q"], list(inputs["past"][:2])
    query = reference.heads.across_channels(y, q)
    past[0][0] = query * (40 / query.square().sum(-1, keepdim=True))  # a score of 10
    past[0][1:] = 0
    g = torch.randn(past[0].shape[0] + 1, *y.shape)

    def dq(backend, *tensors):
        y, q, k, *past, g = tensors
        coef, *_ = dla.attend(y, q, k, past, heads=1, backend=backend)
        return torch.autograd.grad(coef, q, g)[0].double()

    tensors = (y, q.requires_grad_(), torch.zeros_like(q), *past, g)
    exact = dq("reference", *(x.double() for x in tensors))
    off = {name: (dq(name, *tensors) - exact).abs().max() / exact.abs().max() for name in ("cpu", "reference")}
    eps = torch.finfo(torch.float32).eps
    assert off["cpu"] < 50 * eps
    assert off["reference"] > 200 * eps  # so this is a case where it matters
