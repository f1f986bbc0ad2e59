"""NaN and Inf in a sample stay in that sample, and pass through it as they do in the reference."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels import Cell

from .calls import cotangents_for, named, outcome
from .cases import CELLS, FEW_CELLS, OPS, Shape, cell_name, inputs_of, is_shared, options_of
from .tolerances import assert_same_bits

SHAPE = Shape.parse("T3-B9-C17-R5-HW5x3,1x1")
SICK = 4
CARRIERS = {"gap": ["xs"], "scan": ["y", "state"], "refresh": ["y", "state"], "rescale": ["xs", "d"]}
CARRIERS |= {"layer_update": ["xs", "state"], "depthwise": ["x"], "attend": ["y", "past"], "mix": ["values", "coef"]}
CARRIERS |= {"light_step": ["x", "o_prev", "state"], "base_step": ["x", "stage"]}
OP_AND_CARRIER = [(op, carrier) for op in OPS for carrier in (*CARRIERS[op], "cotangent")]


def sample(x, b):
    return x[:, b] if x.dim() == 3 else x[b]


def infect(tensors, value):
    """Puts the value into one element of the sick sample of the last tensor."""
    sample(tensors[-1], SICK).flatten()[2] = value  # a view: samples are contiguous here
    target = sample(tensors[-1], SICK)
    target[(1,) * target.dim()] = value


def per_sample(results):
    return {name: x for name, x in results.items() if not is_shared(name.removeprefix("d "))}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("op", "carrier"), OP_AND_CARRIER)
def test_the_other_samples_do_not_notice(backend, op, carrier, layout, value):
    for cell in FEW_CELLS:
        options = options_of(op, cell)
        inputs = inputs_of(op, SHAPE, cell, torch.float32, layout=layout, device=backend.device)
        cotangents = cotangents_for(op, inputs, **options)
        healthy = outcome(getattr(dla, op), inputs, cotangents, backend=backend.name, **options)
        if carrier == "cotangent":
            infect(list(cotangents.values()), value)
        else:
            infect([x for name, x in named("", inputs) if name.startswith(carrier)], value)
        sick = outcome(getattr(dla, op), inputs, cotangents, backend=backend.name, **options)
        for name, x in per_sample(sick).items():
            for b in set(range(SHAPE.B)) - {SICK}:
                assert_same_bits(sample(x, b), sample(healthy[name], b), f"{name} of sample {b}")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize(("op", "carrier"), OP_AND_CARRIER)
def test_the_sick_sample_is_as_sick_as_in_the_reference(backend, op, carrier, cell, value):
    options = options_of(op, cell)
    inputs = inputs_of(op, SHAPE, cell, torch.float64, device=backend.device)
    cotangents = cotangents_for(op, inputs, **options)
    if carrier == "cotangent":
        infect(list(cotangents.values()), value)
    else:
        infect([x for name, x in named("", inputs) if name.startswith(carrier)], value)
    ours = outcome(getattr(dla, op), inputs, backend=backend.name, **options)
    theirs = outcome(getattr(dla.reference, op), inputs, **options)
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("act", ["relu", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_passes_nan_on(backend, act, dtype):
    """max(x, 0) by a comparison that NaN loses would turn it into 0."""
    cell = Cell("dsu", act)
    inputs = inputs_of("scan", SHAPE, cell, dtype, device=backend.device)
    inputs["y"][0, SICK, 3] = torch.nan
    (c,) = dla.scan(**inputs, cell=cell, backend=backend.name)
    assert c[:, SICK].isnan().all()  # every row of W1 sees the NaN, and its relu keeps it


def test_a_nan_context_stays_out_of_its_own_gradient(backend):
    """dc = dd * sig(f) knows nothing of c; 0 * act'(c), for an h that no output is read off, would."""
    cell = Cell("dsu")
    inputs = inputs_of("refresh", SHAPE, cell, torch.float64, device=backend.device)
    inputs["state"][1][SICK, 3] = torch.nan
    cotangents = cotangents_for("refresh", inputs, cell=cell)
    ours = outcome(dla.refresh, inputs, cotangents, backend=backend.name, cell=cell)
    theirs = outcome(dla.reference.refresh, inputs, cotangents, cell=cell)
    assert theirs["d state[1]"][SICK, 3].isfinite()
    torch.testing.assert_close(ours["d state[1]"], theirs["d state[1]"])
