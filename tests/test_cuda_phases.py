"""Where weights are many, the cell on CUDA is launches of its own, a phase each, which all blocks share out."""

from dataclasses import replace

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS, SIMT
from dla_kernels.cells import ALL_RULES
from dla_kernels.cuda_plan import cuda_plan

from .calls import check_parity, cotangents_for, flat_function, named, outcome
from .cases import FEW_CELLS, LIGHT, Shape, case_name, cell_name, dtype_name, inputs_of, options_of
from .conftest import COMPILED
from .test_cuda_launches import count
from .tolerances import assert_same_bits

if not BACKENDS["cuda"].available:
    pytest.skip(f"no CUDA backend: {BACKENDS['cuda'].reason}", allow_module_level=True)
CUDA = next(served for served in COMPILED if served.name == "cuda")
OPS = ("scan", "refresh", "layer_update", "recalibrate", "light_step")
SQUEEZE = dla.Cell("se")
STEPS_APART = [*FEW_CELLS, LIGHT, SQUEEZE]  # what recalibrate has between two launches over its maps
SHAPES = {
    "less than a tile": Shape.parse("T2-B3-C5-R3-HW2x3,1x1"),
    "more than a tile of rows, columns and terms": Shape.parse("T3-B35-C68-R36-HW2x2"),
    "terms shared by clusters": Shape.parse("T2-B2-C520-R8-HW1x2"),
    "one layer": Shape.parse("T1-B2-C12-R4-HW3x3"),
}


@pytest.fixture(autouse=True)
def in_phases(monkeypatch):
    monkeypatch.setenv("DLA_KERNELS_PHASES", "1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("op", "cell"),
    [*((op, cell) for op in OPS for cell in FEW_CELLS), ("recalibrate", LIGHT), ("recalibrate", SQUEEZE)],
    ids=case_name,
)
def test_parity_at_every_shape(op, cell, shape, dtype):
    inputs = inputs_of(op, shape, cell, dtype, device=CUDA.device)
    check_parity(op, CUDA, inputs, shape.longest_sum, **options_of(op, cell))


@pytest.mark.parametrize("cell", ALL_RULES, ids=cell_name)
@pytest.mark.parametrize("op", OPS)
def test_parity_of_every_rule(op, cell):
    shape = Shape.parse("T3-B2-C10-R4-HW2x2")
    inputs = inputs_of(op, shape, cell, torch.float64, device=CUDA.device)
    check_parity(op, CUDA, inputs, shape.longest_sum, **options_of(op, cell))


@pytest.mark.parametrize("form", ["c", None])
@pytest.mark.parametrize("op", ["scan", "layer_update", "recalibrate"])
def test_parity_from_other_states(op, form):
    """The memory alone, from which h follows, and none at all."""
    cell, shape = dla.PAPER_DSU, Shape.parse("T2-B3-C9-R4-HW2x2")
    inputs = inputs_of(op, shape, cell, torch.float64, form=form, device=CUDA.device)
    check_parity(op, CUDA, inputs, shape.longest_sum, **options_of(op, cell))


@pytest.mark.parametrize("layout", ["channels_last", "mixed", "sliced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_layer_update_takes_every_layout_and_short_dtype(layout, dtype):
    cell, shape = dla.PAPER_DSU, Shape.parse("T3-B2-C24-R6-HW7x7,4x4,1x3")
    inputs = inputs_of("layer_update", shape, cell, dtype, layout=layout, device=CUDA.device)
    check_parity("layer_update", CUDA, inputs, shape.longest_sum, cell=cell)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed", "sliced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("given", [("o_prev", "e"), ("o_prev",), ()], ids=["o_prev and e", "o_prev", "neither"])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_light_step_of_every_form(cell, given, moments, dtype, layout):
    shape = Shape.parse("T1-B3-C24-R6-HW7x7")
    inputs = inputs_of("light_step", shape, cell, dtype, layout=layout, device=CUDA.device)
    inputs |= {name: None for name in ("o_prev", "e") if name not in given}
    check_parity("light_step", CUDA, inputs, shape.longest_sum, cell=cell, heads=4, moments=moments)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed", "sliced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("cell", STEPS_APART, ids=cell_name)
def test_recalibrate_of_every_form(cell, adds, relu, dtype, layout):
    shape = Shape.parse("T1-B3-C24-R6-HW7x7")
    inputs = inputs_of("recalibrate", shape, cell, dtype, layout=layout, device=CUDA.device)
    inputs["shortcut"] = inputs["shortcut"] if adds else None
    check_parity("recalibrate", CUDA, inputs, shape.longest_sum, cell=cell, relu=relu)


@pytest.mark.parametrize("first", ["0", "1"])
@pytest.mark.parametrize(
    ("op", "cell"),
    [("recalibrate", cell) for cell in STEPS_APART] + [("light_step", cell) for cell in FEW_CELLS],
    ids=case_name,
)
def test_each_pass_decides_for_itself(monkeypatch, op, cell, first):
    """Either way saves the same, so that one pass may run in phases, and the other not."""
    inputs = inputs_of(op, Shape.parse("T1-B3-C24-R6-HW7x7"), cell, torch.float64, device=CUDA.device)
    leaves = [x.requires_grad_() for _, x in named("", inputs)]
    cotangents = list(cotangents_for(op, inputs, **options_of(op, cell)).values())

    def gradients(backend):
        out = [x for _, x in named("out", getattr(dla, op)(**inputs, backend=backend, **options_of(op, cell)))]
        if backend == "cuda":
            monkeypatch.setenv("DLA_KERNELS_PHASES", "10"[int(first)])
        return [*out, *torch.autograd.grad(out, leaves, cotangents)]

    monkeypatch.setenv("DLA_KERNELS_PHASES", first)
    for ours, expected in zip(gradients("cuda"), gradients("reference"), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.skipif(not SIMT, reason="a device has its own facts")
@pytest.mark.parametrize(("R", "launches"), [(1, 1), (256, 7)])
def test_the_price_decides_unless_told(monkeypatch, R, launches):
    monkeypatch.delenv("DLA_KERNELS_PHASES")
    monkeypatch.setenv("DLA_KERNELS_GROUP", "0")
    monkeypatch.setenv("DLA_SIMT_DEVICE", "132,100000,1048576,4,64")
    cell, shape = dla.Cell("dia"), replace(Shape.parse("T1-B1-C512-R1-HW1x1"), R=R)
    inputs = inputs_of("recalibrate", shape, cell, torch.float32, device=CUDA.device)
    with torch.no_grad():
        assert count(lambda: dla.recalibrate(**inputs, cell=cell, backend="cuda"))[0] == launches


@pytest.mark.parametrize("op", OPS)
def test_a_samples_bits_do_not_depend_on_its_batch(op):
    cell, shape = dla.RELEASED_DSU, Shape.parse("T3-B37-C40-R70-HW2x2")
    inputs = inputs_of(op, shape, cell, torch.float32, device=CUDA.device)

    def of(samples):
        def cut(x):
            return x[:, samples] if x.dim() == 3 else x[samples]

        some = dict(inputs) | {"state": tuple(cut(s) for s in inputs["state"])}
        some |= {"xs": [cut(x) for x in inputs["xs"]]} if "xs" in inputs else {}
        some |= {name: cut(inputs[name]) for name in ("y", "a", "shortcut", "x", "o_prev") if name in inputs}
        return outcome(getattr(dla, op), some, None, backend="cuda", **options_of(op, cell))

    whole, some = of(slice(None)), of(slice(30, 35))
    for name, result in some.items():
        batch_first = op in ("recalibrate", "light_step") or (name.startswith("out[0]") and op == "layer_update")
        expected = whole[name][30:35] if batch_first else whole[name][:, 30:35]
        assert_same_bits(result, expected, name)


@pytest.mark.parametrize("op", OPS)
def test_bits_repeat(op):
    cell, shape = dla.PAPER_DSU, SHAPES["terms shared by clusters"]
    inputs = inputs_of(op, shape, cell, torch.float32, device=CUDA.device)
    cotangents = cotangents_for(op, inputs, **options_of(op, cell))
    first = outcome(getattr(dla, op), inputs, cotangents, backend="cuda", **options_of(op, cell))
    for name, again in outcome(getattr(dla, op), inputs, cotangents, backend="cuda", **options_of(op, cell)).items():
        assert_same_bits(again, first[name], name)


def test_in_place_writes_what_the_copy_holds():
    cell, shape = dla.PAPER_DSU, Shape.parse("T2-B2-C16-R4-HW3x3")
    inputs = inputs_of("layer_update", shape, cell, torch.float32, device=CUDA.device)
    with torch.no_grad():
        out, states = dla.layer_update(**inputs, cell=cell, backend="cuda")
        xs = [x.clone() for x in inputs["xs"]]
        again, again_states = dla.layer_update(**inputs | {"xs": xs}, cell=cell, inplace=True, backend="cuda")
    assert all(a is x for a, x in zip(again, xs))
    for ours, theirs in zip([*again, *again_states], [*out, *states]):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("cell", STEPS_APART, ids=cell_name)
def test_recalibrate_in_place_writes_what_the_copy_holds(cell):
    inputs = inputs_of("recalibrate", SHAPES["one layer"], cell, torch.float32, device=CUDA.device)
    how = {"cell": cell, "relu": True, "backend": "cuda"}
    with torch.no_grad():
        out, states = dla.recalibrate(**inputs, **how)
        shortcut = inputs["shortcut"].clone()
        again, again_states = dla.recalibrate(**inputs | {"shortcut": shortcut}, inplace=True, **how)
    assert again is shortcut
    for ours, theirs in zip([again, *again_states], [out, *states]):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("cell", STEPS_APART, ids=cell_name)
def test_recalibrate_takes_the_launches_of_a_step_and_those_over_its_maps(cell):
    """Forward the means and the result; backward what arrives at the step, and what leaves for the maps. Between them
    a step; and the weights' gradients."""
    inputs = inputs_of("recalibrate", SHAPES["one layer"], cell, torch.float32, device=CUDA.device)
    for _, x in named("", inputs):
        x.requires_grad_()
    leaves = [x for _, x in named("", inputs)]
    forward, (out, states) = count(lambda: dla.recalibrate(**inputs, cell=cell, relu=True, backend="cuda"))
    found = [out, *states]
    backward, _ = count(lambda: torch.autograd.grad(found, leaves, [torch.ones_like(x) for x in found]))
    step = {  # start, hoisted, u, gates; backward begin, hoisted, u, gates, three to the state, dsy, dy
        "joint": (1 + 1 + 1 + 1, 1 + 1 + 1 + 1 + 3 + 1),
        "split": (1 + 2 + 1 + 1, 1 + 2 + 1 + 1 + 3 + 1 + 1),
        "dense": (1 + 1 + 1, 1 + 1 + 1 + 2 + 1),
        "light": (2 + 1, 2 + 1 + 2),
        "squeeze": (2, 2 + 2),
    }[cell.projection]
    assert (forward, backward) == (2 + step[0], 3 + step[1])


@pytest.mark.parametrize("two", [True, False])
def test_light_step_takes_the_launches_of_a_step_and_those_over_its_maps(two):
    cell, shape = dla.PAPER_DSU, SHAPES["one layer"]
    inputs = inputs_of("light_step", shape, cell, torch.float32, device=CUDA.device)
    inputs |= {} if two else {"o_prev": None, "e": None}
    leaves = [x.requires_grad_() for _, x in named("", inputs)]
    forward, (o, states, _) = count(lambda: dla.light_step(**inputs, cell=cell, heads=1, backend="cuda"))
    found = [o, *states]
    ones = [torch.ones_like(x) for x in found]
    backward, _ = count(lambda: torch.autograd.grad(found, leaves, ones, allow_unused=True))
    # Start, hoisted, u, gates, and of o_prev u and d; backward begin, hoisted, four of o_prev, u, gates, three to the
    # state, dy; and the weights.
    assert (forward, backward) == (2 + 4 + 2 * two, 2 + 2 + 4 * two + 2 + 3 + 1 + 1)


def test_recalibrate_without_weights_between_its_maps_is_one_launch():
    cell = dla.Cell("eca")
    inputs = inputs_of("recalibrate", SHAPES["one layer"], cell, torch.float32, device=CUDA.device)
    with torch.no_grad():
        assert count(lambda: dla.recalibrate(**inputs, cell=cell, backend="cuda"))[0] == 1


def test_recalibrate_is_differentiable_twice():
    for cell in (dla.Cell("dia"), SQUEEZE):
        inputs = inputs_of("recalibrate", Shape.parse("T1-B2-C5-R3-HW2x2"), cell, torch.float64, device=CUDA.device)
        f, leaves = flat_function("recalibrate", inputs, cell=cell, relu=True, backend="cuda")
        assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_a_step_is_two_launches_or_one(cell):
    """The start, what is hoisted, the steps, and the refresh in two launches; maps twice."""
    shape = Shape.parse("T3-B2-C8-R4-HW2x2")
    inputs = inputs_of("layer_update", shape, cell, torch.float32, device=CUDA.device)
    hoisted = 2 if cell.projection == "split" else 1
    low = 1 if cell.projection == "dense" else 2
    with torch.no_grad():
        launches, _ = count(lambda: dla.layer_update(**inputs, cell=cell, backend="cuda"))
    assert launches == 1 + 1 + hoisted + low * 3 + low + 1


def test_an_empty_batch_launches_nothing():
    cell = dla.PAPER_DSU
    inputs = inputs_of("layer_update", Shape.parse("T2-B0-C8-R4-HW2x2"), cell, torch.float32, device=CUDA.device)
    launches, (out, _) = count(lambda: dla.layer_update(**inputs, cell=cell, backend="cuda"))
    assert launches == 0
    assert [x.shape for x in out] == [(0, 8, 2, 2)] * 2


@pytest.mark.skipif(not SIMT, reason="a device says how large its clusters are")
@pytest.mark.parametrize("device", ["2,16384,16384,1,256", "4,16384,16384,4,256"])
def test_parity_with_smaller_clusters(monkeypatch, device):
    monkeypatch.setenv("DLA_SIMT_DEVICE", device)
    cell, shape = dla.PAPER_DSU, SHAPES["terms shared by clusters"]
    inputs = inputs_of("scan", shape, cell, torch.float32, device=CUDA.device)
    check_parity("scan", CUDA, inputs, shape.longest_sum, cell=cell)


DIA, LARGE, SMALL = dla.Cell("dia"), (1, 256, 2048, 49), (1, 128, 256, 64)


@pytest.mark.parametrize(
    ("row", "cell", "phases"),
    [
        ((3, 256, 2048, 49, 128), dla.PAPER_DSU, True),
        ((23, 256, 1024, 196, 64), dla.PAPER_DSU, True),
        ((12, 128, 64, 1024, 16), dla.PAPER_DSU, False),
        ((3, 256, 256, 3136, 16), dla.PAPER_DSU, False),
        ((*LARGE, 128), DIA, True),
        ((*LARGE, 512), SQUEEZE, True),
        ((*SMALL, 16), DIA, False),
        ((*SMALL, 16), SQUEEZE, False),
        ((*SMALL, 16), LIGHT, False),
    ],
    ids=case_name,
)
def test_the_plan_has_phases_where_weights_are_many(row, cell, phases):
    for backward in (False, True):
        path = cuda_plan(*row, cell=cell, backward=backward, device="h100")["path"]
        assert (path == "in-phases") == phases
