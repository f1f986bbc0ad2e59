"""``scan`` is ``c_t = Dyn(y_t, c_{t-1})`` for t = 1..T."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels import Cell

from .calls import check_parity
from .cases import CELLS, FEW_CELLS, MIDDLE, cell_name, dtype_name, inputs_of
from .cell_parity import CellParity
from .tolerances import assert_same_bits


class TestScan(CellParity):
    op = "scan"


@pytest.mark.parametrize(
    ("cell", "h0"),
    [
        (Cell("dsu", "sigmoid", "context"), 0.5),
        (Cell("dsu", "tanh", "context"), 0.0),
        (Cell("dsu", "sigmoid", "sigmoid", projection="split"), 0.0),  # as the published code does
        (Cell("lstm"), 0.0),
        (Cell("dia"), 0.0),
    ],
)
def test_no_state_means_c_is_zero_and_h_as_documented(any_backend, cell, h0):
    inputs = inputs_of("scan", MIDDLE, cell, torch.float32, form=None, device=any_backend.device)
    zeros = torch.zeros(MIDDLE.B, MIDDLE.C, device=any_backend.device)
    implicit = dla.scan(**inputs, cell=cell, backend=any_backend.name)
    explicit = dla.scan(**inputs | {"state": (zeros + h0, zeros)}, cell=cell, backend=any_backend.name)
    for ours, theirs in zip(implicit, explicit):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("act", [torch.sigmoid, torch.tanh, torch.relu])
def test_a_dsu_state_without_h_means_h_is_act_of_c(any_backend, act):
    cell = Cell("dsu-paper", act.__name__)
    inputs = inputs_of("scan", MIDDLE, cell, torch.float32, form="c", device=any_backend.device)
    (c,) = inputs["state"]
    (short,) = dla.scan(**inputs, cell=cell, backend=any_backend.name)
    (full,) = dla.scan(**inputs | {"state": (act(c), c)}, cell=cell, backend=any_backend.name)
    torch.testing.assert_close(short, full, rtol=1e-6, atol=1e-6)  # h is torch's here, and the kernel's there


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_two_scans_in_a_row_are_one(backend, cell):
    """The state is handed on in full (a DSU hands on c alone, with h = act(c))."""
    inputs = inputs_of("scan", MIDDLE, cell, torch.float32, device=backend.device)
    y = inputs.pop("y")
    whole = dla.scan(y, **inputs, cell=cell, backend=backend.name)
    first = dla.scan(y[:2], **inputs, cell=cell, backend=backend.name)
    handed_on = tuple(s[-1] for s in first)
    second = dla.scan(y[2:], inputs["weights"], state=handed_on, cell=cell, backend=backend.name)
    for ours, head, tail in zip(whole, first, second):
        torch.testing.assert_close(ours, torch.cat([head, tail]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_parity_with_saturated_gates(backend, cell, size, dtype):
    """Far out, sigmoid and tanh reach their limits, and never overflow on the way."""
    inputs = inputs_of("scan", MIDDLE, cell, dtype, device=backend.device)
    inputs["weights"] = type(inputs["weights"])(*(w.zero_() for w in inputs["weights"]))
    last_bias = inputs["weights"][-1]
    last_bias.copy_(torch.where(torch.rand(last_bias.shape) < 0.5, -size, size))
    check_parity("scan", backend, inputs, MIDDLE.longest_sum, cell=cell)
