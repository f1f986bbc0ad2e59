"""Where weights are many, the cell on CUDA is launches of its own, a phase each, which all blocks share out."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS, SIMT
from dla_kernels.cells import ALL_RULES
from dla_kernels.cuda_plan import cuda_plan

from .calls import check_parity, cotangents_for, outcome
from .cases import FEW_CELLS, Shape, cell_name, dtype_name, inputs_of, options_of
from .conftest import COMPILED
from .test_cuda_launches import count
from .tolerances import assert_same_bits

if not BACKENDS["cuda"].available:
    pytest.skip(f"no CUDA backend: {BACKENDS['cuda'].reason}", allow_module_level=True)
CUDA = next(served for served in COMPILED if served.name == "cuda")
OPS = ("scan", "refresh", "layer_update")
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
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("op", OPS)
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
@pytest.mark.parametrize("op", ["scan", "layer_update"])
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


@pytest.mark.parametrize("op", OPS)
def test_a_samples_bits_do_not_depend_on_its_batch(op):
    cell, shape = dla.RELEASED_DSU, Shape.parse("T3-B37-C40-R70-HW2x2")
    inputs = inputs_of(op, shape, cell, torch.float32, device=CUDA.device)

    def of(samples):
        def cut(x):
            return x[:, samples] if x.dim() == 3 else x[samples]

        named = dict(inputs) | {"state": tuple(cut(s) for s in inputs["state"])}
        named |= {"xs": [cut(x) for x in inputs["xs"]]} if "xs" in inputs else {"y": cut(inputs["y"])}
        return outcome(getattr(dla, op), named, None, backend="cuda", cell=cell)

    whole, some = of(slice(None)), of(slice(30, 35))
    for name, result in some.items():
        batch_first = name.startswith("out[0]") and op == "layer_update"
        expected = whole[name][30:35] if batch_first else whole[name][:, 30:35]
        assert_same_bits(result, expected, name)


@pytest.mark.parametrize("op", OPS)
def test_bits_repeat(op):
    cell, shape = dla.PAPER_DSU, SHAPES["terms shared by clusters"]
    inputs = inputs_of(op, shape, cell, torch.float32, device=CUDA.device)
    cotangents = cotangents_for(op, inputs, cell=cell)
    first = outcome(getattr(dla, op), inputs, cotangents, backend="cuda", cell=cell)
    for name, again in outcome(getattr(dla, op), inputs, cotangents, backend="cuda", cell=cell).items():
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


@pytest.mark.parametrize(
    ("row", "paths"),
    [
        ((3, 256, 2048, 49, 128), ("in-phases", "in-phases")),
        ((23, 256, 1024, 196, 64), ("in-phases", "in-phases")),
        ((12, 128, 64, 1024, 16), ("on-chip", "on-chip")),
        ((3, 256, 256, 3136, 16), ("on-chip", "on-chip")),
    ],
)
def test_the_plan_has_phases_where_weights_are_many(row, paths):
    assert tuple(cuda_plan(*row, backward=back, device="h100")["path"] for back in (False, True)) == paths
