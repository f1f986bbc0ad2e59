"""The raw backward operators against ``torch.autograd.grad`` of the reference, in float64."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS

from .calls import mapped, named
from .cases import CELLS, FEW_CELLS, LAYOUT_NAMES, Shape, cell_name, inputs_of, lay_out
from .tolerances import allowed_error, error, largest

SHAPE = Shape.parse("T3-B5-C9-R4-HW3x5,1x1,4x2")


def expected(op, inputs, cotangents, **options):
    """The reference's results and the gradient of every input, in the order and by the names of the inputs.

    ``cotangents`` maps a result's name to its gradient; results without one have no part in it.
    """
    inputs = mapped(lambda x: x.detach().requires_grad_(), inputs)
    results = dict(named("out", getattr(dla.reference, op)(**inputs, **options)))
    leaves = dict(named("", inputs))
    grads = torch.autograd.grad(
        [results[name] for name in cotangents], list(leaves.values()), list(cotangents.values()), materialize_grads=True
    )
    return {name: x.detach() for name, x in results.items()}, dict(zip(leaves, grads))


def check(ours, theirs):
    """Every gradient, in order; ``ours`` as the operator nests them, ``theirs`` by name."""
    ours = [x for _, x in named("", ours)]
    assert len(ours) == len(theirs)
    for mine, (name, exact) in zip(ours, theirs.items()):
        assert (mine.shape, mine.dtype) == (exact.shape, exact.dtype), name
        assert error(mine, exact) <= allowed_error(torch.float64, 0, largest(exact), SHAPE.longest_sum), name


def make(op, cell, backend, **how):
    return inputs_of(op, SHAPE, cell, torch.float64, device=backend.device, **how)


def rows_like(x):
    """Gradients of y, d or a state, as autograd may hand them over: dense, or expanded with strides 0."""
    return {
        "dense": torch.randn_like(x),
        "expanded over T": torch.randn_like(x[:1]).expand_as(x),
        "expanded over B": torch.randn_like(x[:, :1]).expand_as(x),
        "one number": torch.randn_like(x[0, 0, 0]).expand_as(x),
        "transposed": torch.randn_like(x.mT.contiguous()).mT,
    }


ROWS = list(rows_like(torch.zeros(1, 1, 1)))


# ---- scan ----


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_scan_bwd(backend, cell):
    check_scan_bwd(backend, cell, "dense")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_scan_bwd_of_gradients_in_any_layout(backend, cell, rows):
    check_scan_bwd(backend, cell, rows)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_scan_bwd_from_the_cells_own_start(backend, cell):
    check_scan_bwd(backend, cell, "dense", form=None)


def check_scan_bwd(backend, cell, rows, **how):
    inputs = make("scan", cell, backend, **how)
    y, weights, state = inputs.values()
    states = dla.reference.scan(**inputs, cell=cell)
    dstates = [rows_like(s)[rows] for s in states]
    results, theirs = expected("scan", inputs, {f"out[{i}]": g for i, g in enumerate(dstates)}, cell=cell)
    saved = list(results.values())
    ops = BACKENDS[backend.name].ops
    check(ops.scan_bwd(dstates, y, list(weights), list(state or ()), saved, cell.rule), theirs)


# ---- refresh ----


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_refresh_bwd(backend, cell):
    check_refresh_bwd(backend, cell, "dense")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_refresh_bwd_of_gradients_in_any_layout(backend, cell, rows):
    check_refresh_bwd(backend, cell, rows)


def check_refresh_bwd(backend, cell, rows):
    inputs = make("refresh", cell, backend)
    y, weights, state = inputs.values()
    dd = rows_like(y)[rows]
    inputs = {"y": y, "state": state, "weights": weights}  # the order of the operator
    _, theirs = expected("refresh", inputs, {"out": dd}, cell=cell)
    check(BACKENDS[backend.name].ops.refresh_bwd(dd, y, list(state), list(weights), cell.rule), theirs)


# ---- rescale ----


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dout_layout", LAYOUT_NAMES)
def test_rescale_bwd_of_gradients_in_any_layout(backend, layout, dout_layout):
    inputs = make("rescale", None, backend, layout=layout)
    xs, d = inputs.values()
    dout = lay_out([torch.randn_like(x) for x in xs], dout_layout)
    _, theirs = expected("rescale", inputs, {f"out[{t}]": g for t, g in enumerate(dout)})
    check(BACKENDS[backend.name].ops.rescale_bwd(dout, xs, d), theirs)


# ---- layer_update ----


@pytest.mark.parametrize("with_dstates", [True, False], ids=["dstates", "no-dstates"])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_layer_update_bwd(backend, cell, with_dstates):
    check_layer_update_bwd(backend, cell, "dense" if with_dstates else None)


@pytest.mark.parametrize("with_dstates", [True, False], ids=["dstates", "no-dstates"])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_layer_update_bwd_from_the_cells_own_start(backend, cell, with_dstates):
    check_layer_update_bwd(backend, cell, "dense" if with_dstates else None, form=None)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_layer_update_bwd_of_state_gradients_in_any_layout(backend, cell, rows):
    check_layer_update_bwd(backend, cell, rows)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dout_layout", LAYOUT_NAMES)
def test_layer_update_bwd_of_map_gradients_in_any_layout(backend, layout, dout_layout):
    check_layer_update_bwd(backend, dla.PAPER_DSU, None, dout_layout=dout_layout, layout=layout)


def check_layer_update_bwd(backend, cell, rows, dout_layout="nchw", **how):
    """``rows``: the layout of the states' gradients; None gives [], which means that there are none."""
    inputs = make("layer_update", cell, backend, **how)
    xs, weights, state = inputs.values()
    _, states = dla.reference.layer_update(**inputs, cell=cell)
    dout = lay_out([torch.randn_like(x) for x in xs], dout_layout)
    dstates = [rows_like(s)[rows] for s in states] if rows else []
    cotangents = {f"out[0][{t}]": g for t, g in enumerate(dout)} | {f"out[1][{i}]": g for i, g in enumerate(dstates)}
    results, theirs = expected("layer_update", inputs, cotangents, cell=cell)
    saved = [x for name, x in results.items() if name.startswith("out[1]")]
    y = dla.reference.gap(xs)
    ops = BACKENDS[backend.name].ops
    ours = ops.layer_update_bwd(dout, dstates, xs, list(weights), list(state or ()), y, saved, cell.rule)
    check(ours, theirs)
    for x, dx in zip(xs, ours[0]):
        assert dx.stride() == torch.empty_like(x).stride(), "the layout of the gradient is that of the map"
