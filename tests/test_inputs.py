"""The inputs of every op are never written; they may be of any strides, shared, or partly in need of gradients."""

import pytest
import torch

import dla_kernels as dla

from .calls import check_parity, cotangents_for, mapped, named, outcome
from .cases import (
    DTYPES,
    FEW_CELLS,
    MIDDLE,
    OPS,
    OPS_WITH_CELL,
    Shape,
    case_name,
    cell_name,
    dtype_name,
    inputs_of,
    options_of,
    with_cells,
    with_layouts,
)
from .interpreter import some
from .tolerances import assert_same_bits


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("op", "layout"), with_layouts(OPS, ["nchw", "channels_last", "sliced"]))
def test_inputs_are_never_written(any_backend, op, layout, dtype):
    cell = dla.RELEASED_DSU
    inputs = inputs_of(op, MIDDLE, cell, dtype, layout=layout, device=any_backend.device)
    options = options_of(op, cell)
    cotangents = cotangents_for(op, inputs, **options)
    watched = dict(named("", inputs)) | {f"d {name}": x for name, x in cotangents.items()}
    before = {name: (x.clone(), x._version) for name, x in watched.items()}
    outcome(getattr(dla, op), inputs, cotangents, backend=any_backend.name, **options)
    outcome(getattr(dla, op), inputs, backend=any_backend.name, **options)
    for name, x in watched.items():
        assert_same_bits(x, before[name][0], name)
        assert x._version == before[name][1], name


def strided(x):
    """Return the same values with a gap of NaN after each element and the dimensions reversed in memory."""
    spaced = x.new_full((*reversed(x.shape), 2), torch.nan)[..., 0]
    return spaced.permute(*reversed(range(x.dim()))).copy_(x)


@pytest.mark.parametrize(("op", "cell"), with_cells(OPS, FEW_CELLS), ids=case_name)
def test_parity_with_any_strides(backend, op, cell):
    inputs = mapped(strided, inputs_of(op, MIDDLE, cell, torch.float32, device=backend.device))
    check_parity(op, backend, inputs, MIDDLE.longest_sum, **options_of(op, cell))


@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_parity_with_a_broadcast_state_and_bias(backend, cell, op):
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=backend.device)
    if op == "base_step":
        inputs["stage"] = mapped(lambda x: x[:1, :1].expand_as(x), inputs["stage"])
    else:
        inputs["state"] = tuple(s[:1, :1].expand_as(s) for s in inputs["state"])
    inputs["weights"] = mapped(lambda w: w if w.dim() == 2 else w[:1].expand_as(w), inputs["weights"])
    check_parity(op, backend, inputs, MIDDLE.longest_sum, **options_of(op, cell))


@pytest.mark.parametrize("op", ["gap", "rescale", "layer_update"])
def test_one_map_given_for_every_layer_gets_the_sum_of_gradients(backend, op):
    cell = dla.PAPER_DSU
    inputs = inputs_of(op, Shape.parse("T3-B2-C19-R5-HW5x3"), cell, torch.float64, device=backend.device)
    x = inputs["xs"][0].requires_grad_()
    inputs["xs"] = [x, x, x]

    def gradient(f, **options):
        return torch.autograd.grad(sum(y.sin().sum() for _, y in named("", f(**inputs, **options))), x)[0]

    ours = gradient(getattr(dla, op), backend=backend.name, **options_of(op, cell))
    torch.testing.assert_close(ours, gradient(getattr(dla.reference, op), **options_of(op, cell)))


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_asked_for_alone_has_the_same_bits(backend, op):
    """Asking for one gradient gives the same bits as asking for all of them."""
    cell = dla.RELEASED_DSU
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=backend.device)
    options = options_of(op, cell)
    cotangents = cotangents_for(op, inputs, **options)
    everything = outcome(getattr(dla, op), inputs, cotangents, backend=backend.name, **options)
    for wanted in some(backend, dict(named("", inputs)), 3):
        fresh = mapped(torch.Tensor.detach, inputs)
        x = dict(named("", fresh))[wanted].requires_grad_()
        outputs = dict(named("out", getattr(dla, op)(**fresh, backend=backend.name, **options)))
        reached = [name for name, out in outputs.items() if out.requires_grad]
        (grad,) = torch.autograd.grad([outputs[n] for n in reached], x, [cotangents[n] for n in reached])
        assert_same_bits(grad, everything[f"d {wanted}"], wanted)


@pytest.mark.parametrize("op", OPS)
def test_outputs_that_the_loss_does_not_use_count_as_zero(backend, op):
    """Outputs that the loss does not use count as gradients of zero."""
    cell = FEW_CELLS[2]  # an lstm: two states
    inputs = inputs_of(op, MIDDLE, cell, torch.float64, device=backend.device)
    options = options_of(op, cell)

    def gradients(f, used, **more):
        fresh = mapped(lambda x: x.detach().requires_grad_(), inputs)
        out = dict(named("out", f(**fresh, **options, **more)))[used]
        return torch.autograd.grad(out.sin().sum(), [x for _, x in named("", fresh)], materialize_grads=True)

    for used in outcome(getattr(dla.reference, op), inputs, **options):
        ours = gradients(getattr(dla, op), used, backend=backend.name)
        theirs = gradients(getattr(dla.reference, op), used)
        for (name, _), mine, exact in zip(named("", inputs), ours, theirs):
            torch.testing.assert_close(mine, exact, msg=lambda m, n=name, u=used: f"d {n} from {u}: {m}")
