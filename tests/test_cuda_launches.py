"""A call launches as few kernels as budgeted, which is the point of the CUDA backend; here they are counted."""

import json

import pytest
import torch

import dla_kernels as dla
from bench.model.counts import BUDGETS
from dla_kernels.backends import BACKENDS, SIMT

from .calls import cotangents_for, named
from .cases import FEW_CELLS, MIDDLE, OPS, case_name, inputs_of, options_of, with_cells

pytestmark = pytest.mark.skipif(not BACKENDS["cuda"].available, reason=f"no CUDA backend: {BACKENDS['cuda'].reason}")
DEVICE = BACKENDS["cuda"].device_types[0]
# Launches forward and backward. The gradient of gap is an expanded view; base_step is five ops.
LAUNCHES = {op: tuple(counts) for op, counts in json.loads(BUDGETS.read_text())["launches"].items()}


def count(call):
    """Return how many kernels of ours ran, and what the call returned."""
    if SIMT:
        before = torch.ops.dla_simt.launches()
        result = call()
        return torch.ops.dla_simt.launches() - before, result
    call()  # the first call does what is done only once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        result = call()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "dla::cuda::" in event.key), result


@pytest.mark.parametrize(("op", "cell"), with_cells(OPS, FEW_CELLS), ids=case_name)
def test_each_op_launches_as_many_kernels_as_budgeted(op, cell):
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=DEVICE)
    options = options_of(op, cell)
    cotangents = list(cotangents_for(op, inputs, **options).values())
    for _, x in named("", inputs):
        x.requires_grad_()
    forward, outputs = count(lambda: getattr(dla, op)(**inputs, backend="cuda", **options))
    outputs = [x for _, x in named("out", outputs)]
    leaves = [x for _, x in named("", inputs)]
    backward, _ = count(lambda: torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True))
    light = cell is not None and cell.projection == "light" and op != "recalibrate"
    assert (forward, backward) == LAUNCHES[f"{op} light" if light else op]


def test_norm_add_launches_as_many_kernels_as_budgeted():
    x, o = (torch.randn(3, 5, 4, 4, device=DEVICE, requires_grad=True) for _ in range(2))
    gamma, beta = (torch.ones(5, device=DEVICE, requires_grad=True) for _ in range(2))
    moments = torch.ones(2, 5, device=DEVICE)
    forward, out = count(lambda: dla.norm_add(x, o, gamma, beta, None, moments=moments, backend="cuda"))
    backward, _ = count(lambda: torch.autograd.grad(out, [x, o, gamma, beta], torch.ones_like(out), retain_graph=True))
    assert (forward, backward) == LAUNCHES["norm_add"]


def test_layer_update_in_place_launches_once():
    inputs = inputs_of("layer_update", MIDDLE, dla.PAPER_DSU, torch.float32, device=DEVICE)
    with torch.no_grad():
        assert count(lambda: dla.layer_update(**inputs, inplace=True, backend="cuda"))[0] == 1


def test_more_layers_than_one_launch_takes_are_refused():
    xs = [torch.ones(1, 2, 1, 1, device=DEVICE)] * 257
    with pytest.raises(RuntimeError, match="xs: expected at most 256 layers in one launch on CUDA, got 257"):
        dla.gap(xs, backend="cuda")
