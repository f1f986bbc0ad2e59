"""``recalibrate`` is ``f(shortcut + a h)``, h being what a cell shows after a step with the mean of a."""

from dataclasses import replace

import pytest
import torch

import dla_kernels as dla
from bench.devices import Calls
from dla_kernels.backends import BACKENDS
from dla_kernels.cells import ALL_RULES
from dla_kernels.nn import ECA, SE, CellModule, DIACell, LayerwiseIntegration

from .calls import check_parity, flat_function, outcome
from .cases import (
    CELLS,
    DTYPES,
    FEW_CELLS,
    FORGETFUL,
    LAYOUT_NAMES,
    LIGHT,
    MIDDLE,
    OPS_WITH_CELL,
    SHAPES,
    SMALL,
    WIDE,
    cell_name,
    dtype_name,
    inputs_of,
    options_of,
    state_forms,
)
from .test_cuda_launches import count
from .tolerances import assert_equal_to_rounding, assert_same_bits

EACH = [*FEW_CELLS, LIGHT, *FORGETFUL]  # one cell for each projection


def inputs_for(cell, shape, dtype, backend, **how):
    return inputs_of("recalibrate", shape, cell, dtype, device=backend.device, **how)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", EACH, ids=cell_name)
def test_parity_at_every_shape(backend, cell, shape, dtype):
    inputs = inputs_for(cell, shape, dtype, backend)
    check_parity("recalibrate", backend, inputs, shape.longest_sum, cell=cell, relu=True)


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_parity_of_every_cell(backend, cell):
    inputs = inputs_for(cell, MIDDLE, torch.float64, backend)
    check_parity("recalibrate", backend, inputs, MIDDLE.longest_sum, cell=cell, relu=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    inputs = inputs_for(dla.Cell("se"), MIDDLE, dtype, backend, layout=layout)
    check_parity("recalibrate", backend, inputs, MIDDLE.longest_sum, cell=dla.Cell("se"), relu=True)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("cell", EACH, ids=cell_name)
def test_parity_of_every_form(backend, cell, adds, relu, layout):
    inputs = inputs_for(cell, MIDDLE, torch.float32, backend, layout=layout)
    inputs["shortcut"] = inputs["shortcut"] if adds else None
    check_parity("recalibrate", backend, inputs, MIDDLE.longest_sum, cell=cell, relu=relu)


@pytest.mark.parametrize("cell", [*FEW_CELLS, dla.Cell("rnn"), LIGHT], ids=cell_name)
def test_parity_from_every_form_of_state(backend, cell):
    for form in (*state_forms(cell), None):
        inputs = inputs_for(cell, SMALL, torch.float64, backend, form=form)
        check_parity("recalibrate", backend, inputs, SMALL.longest_sum, cell=cell, relu=True)


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
def test_parity_with_and_without_each_bias(backend, given):
    inputs = inputs_for(dla.Cell("se"), SMALL, torch.float64, backend)
    w1, b1, w2, b2 = inputs["weights"]
    inputs["weights"] = dla.Squeeze(w1, b1 if given[0] else None, w2, b2 if given[1] else None)
    check_parity("recalibrate", backend, inputs, SMALL.longest_sum, cell=dla.Cell("se"), relu=True)


@pytest.mark.parametrize("shape", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("cell", [dla.Cell("se"), LIGHT, dla.Cell("dia")], ids=cell_name)
def test_parity_where_weights_outgrow_the_cache(backend, cell, shape):
    inputs = inputs_for(cell, shape, torch.float32, backend)
    check_parity("recalibrate", backend, inputs, shape.longest_sum, cell=cell, relu=True)


def test_every_width_of_a_filter(backend):
    for K in (1, 3, 7, 41):
        inputs = inputs_for(dla.Cell("eca"), SMALL, torch.float64, backend)
        inputs["weights"] = dla.Taps(torch.randn(K, dtype=torch.float64, device=backend.device))
        check_parity("recalibrate", backend, inputs, max(K, SMALL.longest_sum), cell=dla.Cell("eca"), relu=True)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("cell", [dla.Cell("dia"), LIGHT, *FORGETFUL], ids=cell_name)
def test_gradients_of_every_form_twice(backend, cell, adds, relu):
    inputs = inputs_for(cell, SMALL, torch.float64, backend)
    inputs["shortcut"] = inputs["shortcut"] if adds else None
    f, leaves = flat_function("recalibrate", inputs, cell=cell, relu=relu, backend=backend.name)
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("cell", EACH, ids=cell_name)
def test_in_place_writes_what_the_copy_holds(backend, cell, adds):
    inputs = inputs_for(cell, MIDDLE, torch.float32, backend)
    inputs["shortcut"] = inputs["shortcut"] if adds else None
    how = {"cell": cell, "relu": True, "backend": backend.name}
    with torch.no_grad():
        expected, states = dla.recalibrate(**inputs, **how)
        written = "shortcut" if adds else "a"
        there = inputs[written].clone()
        out, found = dla.recalibrate(**inputs | {written: there}, **how, inplace=True)
    assert out is there
    for ours, theirs in zip([out, *found], [expected, *states], strict=True):
        assert_same_bits(ours, theirs)


def test_a_light_cell_scans_as_it_steps(backend):
    """The scan over what the bottleneck makes of all y is the same as a step for each."""
    inputs = inputs_of("scan", MIDDLE, LIGHT, torch.float64, device=backend.device)
    states = dla.scan(**inputs, cell=LIGHT, backend=backend.name)
    state = inputs["state"]
    for t, y in enumerate(inputs["y"]):
        _, state = dla.recalibrate(
            y[:, :, None, None], inputs["weights"], cell=LIGHT, state=state, backend=backend.name
        )
        assert_equal_to_rounding([s[t] for s in states], state)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.rule)
def test_parity_of_a_light_cell_in_every_op(backend, rule):
    cell = replace(rule, projection="light")
    for op in OPS_WITH_CELL:
        inputs = inputs_of(op, SMALL, cell, torch.float64, device=backend.device)
        check_parity(op, backend, inputs, SMALL.longest_sum, **options_of(op, cell))


@pytest.mark.parametrize("op", ["scan", "refresh", "layer_update"])
def test_gradients_of_a_light_cell_twice(backend, op):
    inputs = inputs_of(op, SMALL, LIGHT, torch.float64, device=backend.device)
    f, leaves = flat_function(op, inputs, cell=LIGHT, backend=backend.name)
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


def test_autograd_keeps_neither_the_shortcut_nor_without_a_relu_the_result(backend):
    inputs = inputs_for(dla.Cell("se"), MIDDLE, torch.float32, backend)
    for relu in (True, False):
        kept = []
        leaves = {name: inputs[name].detach().requires_grad_() for name in ("a", "shortcut")}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # noqa: B023
            dla.recalibrate(**inputs | leaves, cell="se", relu=relu, backend=backend.name)
        maps = [x for x in kept if x.dim() == 4]
        assert len(maps) == 1 + relu
        assert not any(x.data_ptr() == leaves["shortcut"].data_ptr() for x in maps)


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_are_no_views_of_what_arrives(backend, relu):
    """Autograd adds up in the first gradient that a leaf gets, which may be no other's memory then."""
    a, x, arriving = (torch.ones(1, 3, 2, 2, device=backend.device) for _ in range(3))
    x.requires_grad_()
    for _ in range(3):
        out, _ = dla.recalibrate(
            a, dla.Taps(torch.ones(1, device=backend.device)), cell="eca", shortcut=x, relu=relu, backend=backend.name
        )
        out.backward(arriving)
    assert (arriving == 1).all() and (x.grad == 3).all()


def test_where_a_relu_cuts_off_nothing_comes_back(backend):
    a = torch.tensor([[[[-3.0, 2.0, 0.0, 1.0]]]], device=backend.device)
    shortcut = torch.tensor([[[[0.0, 0.0, 0.0, torch.nan]]]], device=backend.device, requires_grad=True)
    out, _ = dla.recalibrate(
        a, dla.Taps(torch.zeros(1, device=backend.device)), cell="eca", shortcut=shortcut, relu=True,
        backend=backend.name,
    )  # fmt: skip
    out.backward(torch.ones_like(out))
    assert out.isnan().tolist() == [[[[False, False, False, True]]]]
    assert out[..., :3].tolist() == [[[[0.0, 1.0, 0.0]]]]
    assert shortcut.grad.tolist() == [[[[0.0, 1.0, 0.0, 1.0]]]]


@pytest.mark.skipif(not BACKENDS["cuda"].available, reason="no CUDA backend")
@pytest.mark.parametrize("cell", EACH, ids=cell_name)
def test_it_is_one_launch_forward_and_two_back(cell):
    cuda = BACKENDS["cuda"]
    device = cuda.device_types[0]
    inputs = inputs_of("recalibrate", MIDDLE, cell, torch.float32, device=device)
    with torch.no_grad():
        launches, _ = count(lambda: dla.recalibrate(**inputs, cell=cell, relu=True, backend="cuda"))
    assert launches == 1
    a = inputs["a"].detach().requires_grad_()
    out, _ = dla.recalibrate(**inputs | {"a": a}, cell=cell, relu=True, backend="cuda")
    launches, _ = count(lambda: out.backward(torch.ones_like(out)))
    assert launches == 2


@pytest.mark.parametrize("make", [DIACell, lambda C: CellModule(C, LIGHT), SE, ECA], ids=["dia", "light", "se", "eca"])
def test_in_inference_the_end_of_a_block_is_few_calls(make):
    """The op, and what torch does to hand over weights: at most three."""
    module = make(32)
    integrates = isinstance(module, CellModule)
    block = LayerwiseIntegration(module) if integrates else module
    x, a = torch.randn(2, 2, 32, 4, 4)
    counted = Calls()
    with torch.no_grad():
        state = block(x, a, relu=True)[1] if integrates else None
        with counted:
            block(x, a, state, relu=True) if integrates else block(a, x)
    assert 1 <= counted.count <= 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda a, t: dla.recalibrate(a, t, cell="se"),
            "weights: expected Squeeze for a cell with projection='squeeze'",
        ),
        (lambda a, t: dla.recalibrate(a, dla.Taps(torch.ones(4)), cell="eca"), r"taps: expected \[K\] with an odd K"),
        (lambda a, t: dla.recalibrate(a, t, cell="eca", state=(a[..., 0, 0],)), "state: expected None for a eca"),
        (lambda a, t: dla.recalibrate(a, t, cell="eca", shortcut=a[:1]), "shortcut: expected shape"),
        (lambda a, t: dla.recalibrate(a, t, cell="eca", inplace=True), "inplace: expected torch.no_grad"),
        (lambda a, t: dla.scan(a[..., 0], t, cell="eca"), "cell: expected one with a state, got 'eca'"),
        (lambda a, t: dla.Cell("se", projection="joint"), "Cell.projection: expected squeeze with kind='se'"),
        (
            lambda a, t: dla.Cell("lstm", projection="taps"),
            "Cell.projection: expected joint or split or dense or light",
        ),
        (
            lambda a, t: dla.Cell("dia", act="identity"),
            r"Cell\.act: expected sigmoid or tanh or relu with kind='dia', got 'identity'",
        ),
    ],
)
def test_what_is_wrong_is_said(call, said):
    a = torch.randn(2, 3, 4, 4)
    with pytest.raises((TypeError, ValueError), match=said):
        call(a, dla.Taps(torch.ones(3)))


def test_in_place_maps_do_not_overlap():
    both = torch.randn(3, 4, 5, 5)
    with torch.no_grad(), pytest.raises(ValueError, match="a: inplace expected maps of separate memory"):
        dla.recalibrate(both[1:], dla.Taps(torch.ones(3)), cell="eca", shortcut=both[:2], inplace=True)


def test_tanh_makes_a_dia_cell_an_lstm():
    lstm, dia = dla.Cell("lstm", projection="split"), dla.Cell("dia", act="tanh")
    assert dia.rule == lstm.rule
    inputs = inputs_of("recalibrate", SMALL, dia, torch.float64)
    for ours, theirs in zip(*(outcome(dla.recalibrate, inputs, cell=cell).values() for cell in (dia, lstm))):
        assert_same_bits(ours, theirs)
