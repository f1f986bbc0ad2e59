"""The ops work inside PyTorch: with autocast, compile, checkpoint, torch.func, inference mode, threads and pickles."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import dla_kernels as dla

from .calls import cotangents_for, mapped, named, outcome
from .cases import FEW_CELLS, MIDDLE, OPS, Shape, cell_name, dtype_name, inputs_of, options_of
from .interpreter import some
from .tolerances import assert_same_bits

CELL = dla.PAPER_DSU
# As MIDDLE but for what changes from one training step to the next: B, H and W.
OTHER = Shape.parse("T4-B5-C19-R5-HW6x7,3x3")


def public(op, backend, cell=CELL):
    """Return ``dla.<op>`` with everything but its tensors chosen."""
    return partial(getattr(dla, op), backend=backend.name, **options_of(op, cell))


def tensors_for(op, shape, backend, cell=CELL, **choices):
    """Return inputs of an op, and cotangents of its results."""
    inputs = inputs_of(op, shape, cell, choices.pop("dtype", torch.float32), device=backend.device, **choices)
    return inputs, cotangents_for(op, inputs, **options_of(op, cell))


def assert_same_outcome(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, result in ours.items():
        assert_same_bits(result, theirs[name], name)


# ---- autocast ----


def autocast(backend):
    return torch.autocast(backend.device, torch.bfloat16)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_name)
def test_autocast_changes_nothing(any_backend, op, dtype):
    """Maps are as a bf16 network makes them, weights are fp32, and backward is outside, as PyTorch recommends."""
    inputs, cotangents = tensors_for(op, MIDDLE, any_backend, dtype=dtype, weight_dtype=torch.float32)
    function = public(op, any_backend)
    inside = outcome(autocast(any_backend)(function), inputs, cotangents)
    assert_same_outcome(inside, outcome(function, inputs, cotangents))


@pytest.mark.parametrize("op", OPS)
def test_kernels_ignore_autocast_in_backward(backend, op):
    inputs, cotangents = tensors_for(op, MIDDLE, backend)
    function = public(op, backend)
    with autocast(backend):
        inside = outcome(function, inputs, cotangents)
    assert_same_outcome(inside, outcome(function, inputs, cotangents))


@pytest.mark.parametrize("op", OPS)
def test_kernels_ignore_autocast_in_double_backward(backend, op):
    inputs, cotangents = tensors_for(op, MIDDLE, backend)

    def penalty():
        leaves = mapped(lambda x: x.detach().requires_grad_(), inputs)
        outputs, flat = dict(named("out", public(op, backend)(**leaves))), [x for _, x in named("", leaves)]
        directions = [cotangents[name].requires_grad_() for name in outputs]
        grads = torch.autograd.grad(list(outputs.values()), flat, directions, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in grads), flat + directions, materialize_grads=True)

    outside = penalty()
    with autocast(backend):
        inside = penalty()
    for ours, theirs in zip(inside, outside):
        assert_same_bits(ours, theirs)


# ---- torch.compile; aot_eager traces and partitions like inductor, without its C++ compiler ----


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_every_op_compiles_as_one_graph(backend, op, dynamic):
    function = public(op, backend)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in (MIDDLE, OTHER):
        inputs, cotangents = tensors_for(op, shape, backend)
        for given in (cotangents, None):
            assert_same_outcome(outcome(compiled, inputs, given), outcome(function, inputs, given))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_one_dynamic_graph_serves_every_size(backend):
    compiled = torch.compile(public("layer_update", backend), fullgraph=True, dynamic=True, backend="aot_eager")
    # Sizes that agree by chance would be taken for one and the same.
    for n, name in enumerate(("T2-B3-C19-R5-HW7x8,9x10", "T2-B4-C19-R5-HW10x7,6x13", "T2-B9-C19-R5-HW2x8,3x4")):
        inputs, cotangents = tensors_for("layer_update", Shape.parse(name), backend)
        with torch.compiler.set_stance("default" if n == 0 else "fail_on_recompile"):
            outcome(compiled, inputs, cotangents)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("layout", ["channels_last", "mixed"])
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_inductor_finds_the_strides_it_was_promised(backend, op, layout):
    def use(**inputs):
        result = public(op, backend)(**inputs)
        return [x * 2 for x in (result if op == "rescale" else result[0])]

    inputs, _ = tensors_for(op, MIDDLE, backend, layout=layout)
    cotangents = {f"out[{t}]": torch.randn_like(x) for t, x in enumerate(inputs["xs"])}
    compiled = torch.compile(use, fullgraph=True)
    assert_same_outcome(outcome(compiled, inputs, cotangents), outcome(use, inputs, cotangents))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("op", ["rescale", "layer_update"])
def test_ops_compiled_in_place_write_in_place(backend, op):
    function = partial(public(op, backend), inplace=True)
    inputs, _ = tensors_for(op, MIDDLE, backend)
    expected = outcome(function, mapped(torch.clone, inputs))
    compiled = outcome(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
    assert_same_outcome(compiled, expected)
    written = [result for result in compiled.values() if result.dim() == 4]
    assert [x.data_ptr() for x in inputs["xs"]] == [x.data_ptr() for x in written]


# ---- checkpoint, torch.func, inference mode ----


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_checkpointing_changes_no_bit(any_backend, cell):
    inputs, cotangents = tensors_for("layer_update", MIDDLE, any_backend, cell)
    function = public("layer_update", any_backend, cell)
    checkpointed = partial(checkpoint, function, use_reentrant=False)
    assert_same_outcome(outcome(checkpointed, inputs, cotangents), outcome(function, inputs, cotangents))


@pytest.mark.parametrize("op", OPS)
def test_func_grad_gives_the_gradients_of_autograd(any_backend, op):
    inputs, cotangents = tensors_for(op, MIDDLE, any_backend)
    function = public(op, any_backend)

    def loss(inputs):
        return sum((x * cotangents[name]).sum() for name, x in named("out", function(**inputs)))

    expected = outcome(function, inputs, cotangents)
    for name, grad in named("", torch.func.grad(loss)(inputs)):
        assert_same_bits(grad, expected[f"d {name}"], name)


class Stage(torch.nn.Module):
    """A stage is what a user would write around ``layer_update``."""

    def __init__(self, weights, backend):
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)
        self.function = public("layer_update", backend)

    def forward(self, xs):
        out, _ = self.function(xs, dla.Joint(*self.weights))
        return sum(x.pow(2).sum() for x in out)


def test_functional_call_gives_the_gradients_of_the_module(any_backend):
    inputs, _ = tensors_for("layer_update", MIDDLE, any_backend)
    xs, weights, _ = inputs.values()
    stage = Stage(weights, any_backend)
    stage(xs).backward()

    blank = Stage(mapped(torch.zeros_like, weights), any_backend)
    given = {name: p.detach() for name, p in stage.named_parameters()}
    grads = torch.func.grad(lambda parameters: torch.func.functional_call(blank, parameters, (xs,)))(given)
    for name, parameter in stage.named_parameters():
        assert_same_bits(grads[name], parameter.grad, name)


@pytest.mark.parametrize("op", OPS)
def test_inference_mode_changes_no_bit(any_backend, op):
    inputs, _ = tensors_for(op, MIDDLE, any_backend)
    function = public(op, any_backend)
    expected = outcome(function, inputs)
    with torch.inference_mode():
        results = dict(named("out", function(**mapped(torch.clone, inputs))))
    assert_same_outcome(results, expected)
    assert all(x.is_inference() for x in results.values())


def test_frozen_inputs_give_results_without_a_graph(any_backend):
    inputs, _ = tensors_for("layer_update", MIDDLE, any_backend)
    assert not any(x.requires_grad for _, x in named("", public("layer_update", any_backend)(**inputs)))


# ---- copies, threads, forward mode, the first call ----


def pickled(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_cells_and_weights_can_be_copied(any_backend, cell, copied):
    inputs, cotangents = tensors_for("layer_update", MIDDLE, any_backend, cell)
    twin, twins = copied(cell), copied(inputs)
    assert (twin, hash(twin), type(twins["weights"])) == (cell, hash(cell), type(inputs["weights"]))
    ours = outcome(public("layer_update", any_backend, twin), twins, cotangents)
    assert_same_outcome(ours, outcome(public("layer_update", any_backend, cell), inputs, cotangents))


@pytest.mark.parametrize("op", OPS)
def test_python_threads_do_not_disturb_each_other(backend, op):
    calls = [(public(op, backend), *tensors_for(op, shape, backend)) for shape in (MIDDLE, OTHER)]
    expected = [outcome(*call) for call in calls]
    with ThreadPoolExecutor(6) as pool:
        jobs = [(n, pool.submit(outcome, *calls[n % 2])) for n in some(backend, range(60), 7)]
    for n, job in jobs:
        assert_same_outcome(job.result(), expected[n % 2])


def test_forward_mode_ad_is_refused(backend):
    y = torch.randn(2, 3, 4, device=backend.device)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda d: dla.rescale([d[0, :, :, None, None]], d[:1], backend=backend.name)[0], (y,), (y,))


def test_the_first_call_of_a_process_may_be_compiled():
    code = (
        "import torch, dla_kernels as dla\n"
        "f = torch.compile(lambda xs: dla.gap(xs), fullgraph=True, backend='aot_eager')\n"
        "assert f([torch.ones(1, 2, 3, 3)]).eq(1).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
