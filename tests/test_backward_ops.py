"""The raw ``<op>_bwd`` operators equal autograd through the reference, in float64."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS
from dla_kernels.cells import PROJECTIONS

from .cases import CELLS, FEW_CELLS, MIDDLE, SHAPES, WIDE, cell_name, maps, rows, state, weights
from .interpreter import interpreted
from .tolerances import allowed_error, error, largest

DOUBLE = torch.float64


def reference_gradients(outputs, inputs, arriving):
    return torch.autograd.grad(outputs, inputs, arriving, materialize_grads=True)


def assert_close(shape, ours, exact):
    assert len(ours) == len(exact)
    for i, (mine, theirs) in enumerate(zip(ours, exact)):
        limit = allowed_error(DOUBLE, 0.0, largest(theirs), shape.longest_sum)
        assert error(mine, theirs) <= limit, f"result {i} of {len(exact)}"


class Inputs:
    """The inputs are leaves in float64, and what the backward operators are given besides the gradients."""

    def __init__(self, cell, shape, backend, form):
        self.cell, self.shape = cell, shape
        make = {"dtype": DOUBLE, "device": backend.device}
        self.xs = [x.requires_grad_() for x in maps(shape, **make)]
        self.y = rows(shape, **make).requires_grad_()
        self.weights = [w.requires_grad_() for w in weights(cell, shape, **make)]
        self.state = [s.requires_grad_() for s in state(shape, form, **make) or ()]
        self.kernels = BACKENDS[backend.name].ops

    def reference(self, op, first):
        """Return what the reference of ``op`` returns, where [] for a state is None."""
        w = PROJECTIONS[self.cell.projection](*self.weights)
        return getattr(dla.reference, op)(first, weights=w, cell=self.cell, state=tuple(self.state) or None)


def full_form(cell):
    return "h" if cell.kind == "rnn" else "hc"


@pytest.fixture(params=CELLS, ids=cell_name)
def cell(request):
    return request.param


@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_scan_bwd_equals_autograd(backend, cell, given, shape=MIDDLE):
    i = Inputs(cell, shape, backend, full_form(cell) if given else None)
    states = i.reference("scan", i.y)
    arriving = [torch.randn_like(s) for s in states]
    dy, dweights, dstate = i.kernels.scan_bwd(arriving, i.y, i.weights, i.state, states, cell.rule)
    exact = reference_gradients(states, [i.y, *i.weights, *i.state], arriving)
    assert_close(shape, [dy, *dweights, *dstate], exact)


def test_refresh_bwd_equals_autograd(backend, cell, shape=MIDDLE):
    i = Inputs(cell, shape, backend, full_form(cell))
    d = i.reference("refresh", i.y)
    arriving = torch.randn_like(d)
    dy, dstate, dweights = i.kernels.refresh_bwd(arriving, i.y, i.state, i.weights, cell.rule)
    exact = reference_gradients([d], [i.y, *i.state, *i.weights], [arriving])
    assert_close(shape, [dy, *dstate, *dweights], exact)


@pytest.mark.parametrize("with_dstates", [True, False], ids=["dstates", "no-dstates"])
@pytest.mark.parametrize("given", [True, False], ids=["state", "no-state"])
def test_layer_update_bwd_equals_autograd(backend, cell, given, with_dstates, shape=MIDDLE):
    i = Inputs(cell, shape, backend, full_form(cell) if given else None)
    out, states = i.reference("layer_update", i.xs)
    dout = [torch.randn_like(x) for x in out]
    dstates = [torch.randn_like(s) for s in states] if with_dstates else []
    y = dla.reference.gap(i.xs)
    dxs, dweights, dstate = i.kernels.layer_update_bwd(dout, dstates, i.xs, i.weights, i.state, y, states, cell.rule)
    outputs = [*out, *states] if with_dstates else out
    exact = reference_gradients(outputs, [*i.xs, *i.weights, *i.state], [*dout, *dstates])
    assert_close(shape, [*dxs, *dweights, *dstate], exact)


@pytest.mark.parametrize("few", FEW_CELLS, ids=cell_name)
def test_backward_operators_equal_autograd_at_every_shape(backend, few):
    for shape in SHAPES[:4] if interpreted(backend) else [*SHAPES, WIDE[few.projection]]:
        test_scan_bwd_equals_autograd(backend, few, True, shape)
        test_refresh_bwd_equals_autograd(backend, few, shape)
        test_layer_update_bwd_equals_autograd(backend, few, True, True, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rescale_bwd_equals_autograd(backend, shape):
    xs = [x.requires_grad_() for x in maps(shape, DOUBLE, device=backend.device)]
    d = rows(shape, DOUBLE, backend.device).requires_grad_()
    out = dla.reference.rescale(xs, d)
    dout = [torch.randn_like(x) for x in out]
    dxs, dd = BACKENDS[backend.name].ops.rescale_bwd(dout, xs, d)
    assert_close(shape, [*dxs, dd], reference_gradients(out, [*xs, d], dout))
