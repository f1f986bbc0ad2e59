"""Inside the rest of PyTorch: autocast, compile, checkpoint, func, partial gradients, threads, pickles."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import dla_kernels as dla

from .calls import cotangents_for, mapped, named, outcome
from .cases import (
    CELLS,
    FEW_CELLS,
    LAYOUT_NAMES,
    MIDDLE,
    OPS,
    OPS_WITH_CELL,
    Shape,
    cell_name,
    inputs_of,
    options_of,
)
from .tolerances import assert_same_bits

CELL = dla.PAPER_DSU
OTHER = Shape.parse("T4-B5-C19-R5-HW6x7,3x3")  # as MIDDLE but for B, H and W, which training loops change


def assert_same_outcome(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same_bits(ours[name], theirs[name], name)


def everything(op, inputs, cell=CELL, **options):
    """Outputs and gradients of a public op under fixed cotangents."""
    torch.manual_seed(1)
    options |= options_of(op, cell)
    cotangents = cotangents_for(op, inputs, **options_of(op, cell))
    return lambda: outcome(getattr(dla, op), inputs, cotangents, **options)


# ---- autocast ----


@pytest.mark.parametrize("name", [None, "reference"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("maps", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_changes_nothing(op, name, maps):
    inputs = inputs_of(op, MIDDLE, CELL, maps, weight_dtype=torch.float32)
    run = everything(op, inputs, backend=name)
    outside = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    assert_same_outcome(inside, outside)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_double_backward_under_autocast_changes_nothing(cell):
    inputs = inputs_of("layer_update", MIDDLE, cell, torch.float32)

    def gradients_of_a_gradient():
        leaves = mapped(lambda x: x.detach().requires_grad_(), inputs)
        out, _ = dla.layer_update(**leaves, cell=cell)
        flat = [x for _, x in named("", leaves)]
        first = torch.autograd.grad(sum(x.pow(2).sum() for x in out), flat, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), flat)

    outside = gradients_of_a_gradient()
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients_of_a_gradient()
    for ours, theirs in zip(inside, outside):
        assert_same_bits(ours, theirs)


# ---- torch.compile ----


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", ["gap", "scan", "rescale", "layer_update"])
def test_compiles_whole(op, dynamic):
    torch.compiler.reset()
    options = options_of(op, CELL)
    compiled = torch.compile(getattr(dla, op), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in (MIDDLE, OTHER):
        inputs = inputs_of(op, shape, CELL, torch.float32)
        cotangents = cotangents_for(op, inputs, **options)
        eager = outcome(getattr(dla, op), inputs, cotangents, **options)
        assert_same_outcome(outcome(compiled, inputs, cotangents, **options), eager)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["channels_last", "mixed"])
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_compiled_results_keep_their_layout(op, layout):
    """Inductor trusts the strides that the operators' fakes promise, and asserts them."""
    torch.compiler.reset()

    def update_and_use(**inputs):
        result = getattr(dla, op)(**inputs, **options_of(op, CELL))
        return [x * 2 for x in (result if op == "rescale" else result[0])]

    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, layout=layout)
    cotangents = {f"out[{t}]": torch.randn_like(x) for t, x in enumerate(inputs["xs"])}
    eager = outcome(update_and_use, inputs, cotangents)
    assert_same_outcome(outcome(torch.compile(update_and_use, fullgraph=True), inputs, cotangents), eager)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_compiles_in_place(op):
    torch.compiler.reset()
    options = options_of(op, CELL) | {"inplace": True}
    compiled = torch.compile(getattr(dla, op), fullgraph=True, backend="aot_eager")
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32)
    written = inputs | {"xs": [x.clone() for x in inputs["xs"]]}
    with torch.no_grad():
        expected = dict(named("", getattr(dla, op)(**inputs | {"xs": [x.clone() for x in inputs["xs"]]}, **options)))
        result = dict(named("", compiled(**written, **options)))
    assert_same_outcome(result, expected)
    maps = result.values() if op == "rescale" else [x for name, x in result.items() if name.startswith("[0]")]
    for ours, x in zip(maps, written["xs"]):
        assert ours.data_ptr() == x.data_ptr()
        assert_same_bits(ours, x)


# ---- checkpoint and torch.func ----


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_checkpoint(cell):
    inputs = inputs_of("layer_update", MIDDLE, cell, torch.float32)
    run = everything("layer_update", inputs, cell)

    def checkpointed(**inputs):
        return checkpoint(lambda: dla.layer_update(**inputs, cell=cell), use_reentrant=False)

    torch.manual_seed(1)
    cotangents = cotangents_for("layer_update", inputs, cell=cell)
    assert_same_outcome(outcome(checkpointed, inputs, cotangents), run())


@pytest.mark.parametrize("op", OPS)
def test_func_grad(op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32)

    def loss(inputs):
        return sum(x.pow(2).sum() for _, x in named("", getattr(dla, op)(**inputs, **options_of(op, CELL))))

    leaves = mapped(lambda x: x.detach().requires_grad_(), inputs)
    expected = torch.autograd.grad(loss(leaves), [x for _, x in named("", leaves)])
    for (name, ours), theirs in zip(named("", torch.func.grad(loss)(inputs)), expected):
        assert_same_bits(ours, theirs, name)


class Stage(torch.nn.Module):
    """What a user would write around ``layer_update``."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, xs):
        out, _ = dla.layer_update(xs, dla.Joint(*self.weights), cell=CELL)
        return sum(x.pow(2).sum() for x in out)


def test_functional_call():
    xs, weights, _ = inputs_of("layer_update", MIDDLE, CELL, torch.float32).values()
    stage = Stage(mapped(torch.zeros_like, weights))
    parameters = {name: w for (name, _), w in zip(stage.named_parameters(), weights)}

    def loss(parameters):
        return torch.func.functional_call(stage, parameters, (xs,))

    filled = Stage(weights)
    filled(xs).backward()
    for ours, theirs in zip(torch.func.grad(loss)(parameters).values(), filled.parameters()):
        assert_same_bits(ours, theirs.grad)


@pytest.mark.parametrize("op", OPS)
def test_inference_mode(op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32)
    expected = outcome(getattr(dla, op), inputs, **options_of(op, CELL))
    with torch.inference_mode():
        inside = mapped(torch.clone, inputs)
        assert_same_outcome(outcome(getattr(dla, op), inside, **options_of(op, CELL)), expected)
        assert all(x.is_inference() for _, x in named("", getattr(dla, op)(**inside, **options_of(op, CELL))))


# ---- gradients for some inputs, or from some outputs ----


@pytest.mark.parametrize("wanted", ["xs[1]", "y", "d", "weights", "weights.w2", "state", "state[0]", "xs"])
@pytest.mark.parametrize("op", OPS)
def test_any_subset_of_inputs_may_need_a_gradient(op, wanted):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32)
    if not any(name.startswith(wanted) for name, _ in named("", inputs) for name in [name.lstrip(".")]):
        return  # an input of another op
    full = everything(op, inputs)()
    torch.manual_seed(1)
    cotangents = cotangents_for(op, inputs, **options_of(op, CELL))

    leaves = mapped(lambda x: x.detach().clone(), inputs)
    chosen = {name: x.requires_grad_() for name, x in named("", leaves) if name.startswith(wanted)}
    outputs = dict(named("out", getattr(dla, op)(**leaves, **options_of(op, CELL))))
    given = [name for name, x in outputs.items() if x.requires_grad]
    grads = torch.autograd.grad([outputs[n] for n in given], list(chosen.values()), [cotangents[n] for n in given])
    for name, grad in zip(chosen, grads):
        assert_same_bits(grad, full[f"d {name}"], name)
    assert all(x.grad is None for _, x in named("", leaves))


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_gradient_of_some_outputs_only(cell):
    """The other outputs then send no gradient at all, which must count as zero."""
    inputs = inputs_of("layer_update", MIDDLE, cell, torch.float64)
    leaves = mapped(lambda x: x.detach().requires_grad_(), inputs)
    flat = [x for _, x in named("", leaves)]
    for pick in (lambda out, states: states[-1][-1:], lambda out, states: states[0][:1], lambda out, states: out[1]):
        ours, theirs = (
            torch.autograd.grad(pick(*f(**leaves, cell=cell)).pow(2).sum(), flat, materialize_grads=True)
            for f in (dla.layer_update, dla.reference.layer_update)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_frozen_inputs_give_results_without_a_graph():
    inputs = inputs_of("layer_update", MIDDLE, CELL, torch.float32)
    assert not any(x.requires_grad for _, x in named("", dla.layer_update(**inputs, cell=CELL)))


# ---- values that travel ----


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_cells_and_weights_can_be_copied(cell, copied):
    inputs = inputs_of("layer_update", MIDDLE, cell, torch.float32)
    twin = copied(cell)
    assert twin == cell
    assert hash(twin) == hash(cell)
    twins = copied(inputs)
    assert type(twins["weights"]) is type(inputs["weights"])
    expected = outcome(dla.layer_update, inputs, cell=cell)
    assert_same_outcome(outcome(dla.layer_update, twins, cell=twin), expected)


# ---- company ----


@pytest.mark.parametrize("op", OPS)
def test_python_threads_do_not_disturb_each_other(op):
    runs = [everything(op, inputs_of(op, shape, CELL, torch.float32)) for shape in (MIDDLE, OTHER)]
    expected = [run() for run in runs]
    with ThreadPoolExecutor(6) as pool:
        jobs = [(n % 2, pool.submit(getattr_run(runs[n % 2]))) for n in range(48)]
        for which, job in jobs:
            assert_same_outcome(job.result(), expected[which])


def getattr_run(run):
    return run


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("op", OPS)
def test_no_input_is_written(op, layout):
    for cell in FEW_CELLS if op in OPS_WITH_CELL else [None]:
        inputs = inputs_of(op, MIDDLE, cell, torch.float32, layout=layout)
        before = dict(named("", mapped(torch.clone, inputs)))
        versions = {name: x._version for name, x in named("", inputs)}
        everything(op, inputs, cell)()
        for name, x in named("", inputs):
            assert x._version == versions[name], name
            assert_same_bits(x, before[name], name)
