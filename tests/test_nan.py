"""NaN and Inf in a sample stay in that sample, and pass through it as they do in the reference."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels import Cell

from .calls import cotangents_for, mapped, named, outcome
from .cases import (
    CELLS,
    FEW_CELLS,
    OPS,
    TAKEN,
    Shape,
    case_name,
    inputs_of,
    is_shared,
    options_of,
    with_cells,
    with_layouts,
)
from .interpreter import some
from .tolerances import assert_same_bits

SHAPE = Shape.parse("T3-B9-C17-R5-HW5x3,1x1")
FEW_SAMPLES = Shape.parse("T3-B5-C9-R5-HW5x3,1x1")
SICK = 4
CARRIERS = {op: [name for name in TAKEN[op] if not is_shared(name)] + ["cotangent"] for op in OPS}
SICK_VALUES = [torch.nan, torch.inf, -torch.inf]
# Where Inf meets Inf of the other sign or 0, NaN comes or Inf by how terms are grouped. The kernels have
# d x + dwconv(x; e) as one filter, and of softmax's and sigmoid's gradients the products in another order.
GROUPED_OTHERWISE = ("light_step ", "attend d ", "base_step d ")
# Of a dsu nothing but the next layer reads h: the kernels add its gradient, which is 0, times what may be NaN.
NO_NEXT_LAYER = ("recalibrate d ",)


def options_for(op, cell):
    """Return the op's options; a relu would hide where what is sick goes, and has a test of its own."""
    return options_of(op, cell) | ({"relu": False} if op == "recalibrate" else {})


def sample(x, b):
    return x[:, b] if x.dim() == 3 else x[b]


def infect(x, value):
    """Put the value into one element of the sick sample, in the middle."""
    target = sample(x, SICK)
    target[tuple(n // 2 for n in target.shape)] = value


def infected(inputs, cotangents, carrier, value):
    """Yield (name, inputs, cotangents) for every tensor of the carrier, with that one infected."""
    in_inputs = [name for name, _ in named("", inputs) if name.partition("[")[0].partition(".")[0] == carrier]
    for name in cotangents if carrier == "cotangent" else in_inputs:
        sick_inputs, sick_cotangents = mapped(torch.clone, inputs), mapped(torch.clone, cotangents)
        infect(dict(sick_cotangents if carrier == "cotangent" else named("", sick_inputs))[name], value)
        yield name, sick_inputs, sick_cotangents


def per_sample(results):
    return {name: x for name, x in results.items() if not is_shared(name.removeprefix("d "))}


def assert_read(tensor, sick, healthy):
    """Check that the tensor is read: else nothing would be known of what becomes of the value."""
    changed = [not torch.equal(x.nan_to_num(0.125), healthy[name].nan_to_num(0.125)) for name, x in sick.items()]
    assert any(changed), f"{tensor} is not read"


OP_LAYOUT_CARRIER = [
    (op, layout, carrier) for op, layout in with_layouts(OPS, ["nchw", "channels_last"]) for carrier in CARRIERS[op]
]
OP_CELL_CARRIER = [(op, cell, carrier) for op, cell in with_cells(OPS, CELLS) for carrier in CARRIERS[op]]


@pytest.mark.parametrize("value", SICK_VALUES)
@pytest.mark.parametrize(("op", "layout", "carrier"), OP_LAYOUT_CARRIER)
def test_nan_and_inf_stay_in_their_sample(backend, op, layout, carrier, value):
    others = [b for b in range(SHAPE.B) if b != SICK]
    for _, cell in with_cells([op], some(backend, FEW_CELLS, 1)):
        options = options_for(op, cell)
        inputs = inputs_of(op, SHAPE, cell, torch.float32, layout=layout, device=backend.device)
        cotangents = cotangents_for(op, inputs, **options)
        healthy = outcome(getattr(dla, op), inputs, cotangents, backend=backend.name, **options)
        for tensor, *given in some(backend, infected(inputs, cotangents, carrier, value), 2):
            sick = outcome(getattr(dla, op), *given, backend=backend.name, **options)
            assert_read(tensor, sick, healthy)
            for name, x in per_sample(sick).items():
                assert_same_bits(sample(x, others), sample(healthy[name], others), f"{name} with a sick {tensor}")


@pytest.mark.parametrize("value", SICK_VALUES)
@pytest.mark.parametrize(("op", "cell", "carrier"), OP_CELL_CARRIER, ids=case_name)
def test_nan_and_inf_spread_as_in_the_reference(backend, op, cell, carrier, value):
    """In results and gradients alike the same elements are finite and equal, and the others NaN, Inf or -Inf."""
    options = options_for(op, cell)
    inputs = inputs_of(op, FEW_SAMPLES, cell, torch.float64, device=backend.device)
    cotangents = cotangents_for(op, inputs, **options)
    healthy = outcome(getattr(dla.reference, op), inputs, cotangents, **options)
    for tensor, *given in some(backend, infected(inputs, cotangents, carrier, value), 2):
        theirs = outcome(getattr(dla.reference, op), *given, **options)
        ours = outcome(getattr(dla, op), *given, backend=backend.name, **options)
        assert_read(tensor, theirs, healthy)
        for name, x in theirs.items():
            mine = ours[name]
            if f"{op} {name}".startswith(GROUPED_OTHERWISE):
                mine, x = (result.masked_fill(~result.isfinite(), torch.nan) for result in (mine, x))
            if f"{op} {name}".startswith(NO_NEXT_LAYER) and cell.h_follows_from_c:
                mine, x = (result.masked_fill(~(mine.isfinite() & x.isfinite()), torch.nan) for result in (mine, x))
            note = f"{name} with a sick {tensor}"
            torch.testing.assert_close(mine, x, equal_nan=True, msg=lambda m, note=note: f"{note}: {m}")


@pytest.mark.parametrize("act", ["relu", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_passes_nan_on(backend, act, dtype):
    """max(x, 0) by a comparison that NaN loses would turn it into 0."""
    cell = Cell("dsu-paper", act)
    inputs = inputs_of("scan", SHAPE, cell, dtype, device=backend.device)
    inputs["y"][0, SICK, 3] = torch.nan
    (c,) = dla.scan(**inputs, cell=cell, backend=backend.name)
    assert c[:, SICK].isnan().all()  # every row of W1 sees the NaN, and its relu keeps it


def test_a_nan_context_stays_out_of_its_own_gradient(backend):
    """dc = dd * sig(f) knows nothing of c; 0 * act'(c), for an h that no output is read off, would."""
    cell = Cell("dsu-paper")
    inputs = inputs_of("refresh", SHAPE, cell, torch.float64, device=backend.device)
    inputs["state"][1][SICK, 3] = torch.nan
    cotangents = cotangents_for("refresh", inputs, cell=cell)
    ours = outcome(dla.refresh, inputs, cotangents, backend=backend.name, cell=cell)
    theirs = outcome(dla.reference.refresh, inputs, cotangents, cell=cell)
    assert theirs["d state[1]"][SICK, 3].isfinite()
    torch.testing.assert_close(ours["d state[1]"], theirs["d state[1]"])
