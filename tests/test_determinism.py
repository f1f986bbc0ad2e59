"""The same bits from run to run, on any number of threads, and whatever else is in the batch."""

import pytest
import torch

import dla_kernels as dla

from .calls import cotangents_for, mapped, outcome
from .cases import (
    DTYPES,
    FEW_CELLS,
    MIDDLE,
    OPS,
    OPS_WITH_CELL,
    WIDE,
    Shape,
    cell_name,
    dtype_name,
    inputs_of,
    options_of,
)
from .tolerances import assert_same_bits

# Nine samples: a block and one more. The large maps do not fit a core's cache, the wide weights neither.
BATCH = Shape.parse("T3-B9-C65-R21-HW5x3,8x8,1x1")
LARGE_MAPS = Shape.parse("T2-B9-C65-R21-HW66x64")


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def complete_outcome(op, backend, inputs, cotangents, cell):
    return outcome(getattr(dla, op), inputs, cotangents, backend=backend.name, **options_of(op, cell))


def assert_equal(ours, theirs, note=""):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same_bits(ours[name], theirs[name], f"{name} {note}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed"])
@pytest.mark.parametrize("op", OPS)
def test_from_run_to_run_and_on_any_number_of_threads(backend, set_threads, op, layout, dtype):
    for cell in FEW_CELLS:
        inputs = inputs_of(op, BATCH, cell, dtype, layout=layout, device=backend.device)
        cotangents = cotangents_for(op, inputs, **options_of(op, cell))
        first = complete_outcome(op, backend, inputs, cotangents, cell)
        for threads in (1, 2, 3, 2):
            set_threads(threads)
            again = complete_outcome(op, backend, inputs, cotangents, cell)
            assert_equal(again, first, f"on {threads} threads")


@pytest.mark.parametrize("shape", [LARGE_MAPS, *WIDE.values()], ids=str)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_large_maps_and_weights_on_any_number_of_threads(backend, set_threads, cell, shape):
    if shape in WIDE.values() and shape is not WIDE[cell.projection]:
        pytest.skip("as wide as another projection needs")
    inputs = inputs_of("layer_update", shape, cell, torch.float32, device=backend.device)
    cotangents = cotangents_for("layer_update", inputs, cell=cell)
    set_threads(1)
    first = complete_outcome("layer_update", backend, inputs, cotangents, cell)
    for threads in (2, 3):
        set_threads(threads)
        assert_equal(
            complete_outcome("layer_update", backend, inputs, cotangents, cell), first, f"on {threads} threads"
        )


# ---- batch invariance ----


def part(op, tensors, begin, end):
    """The samples begin .. end: of maps and states the first axis, of y, d and all states [T, B, C] the second."""

    def cut(name, x):
        return x[:, begin:end] if x.dim() == 3 else x if name.startswith("weights") else x[begin:end]

    return {
        name: cut(name, x) if isinstance(x, torch.Tensor) else mapped(lambda y, n=name: cut(n, y), x)
        for name, x in tensors.items()
    }


def assert_batch_invariant(op, backend, shape, cell, dtype, layout="nchw", groups=None):
    """Every group of samples alone gives the bits it gives inside the whole batch; weights sum over all."""
    inputs = inputs_of(op, shape, cell, dtype, layout=layout, device=backend.device)
    cotangents = cotangents_for(op, inputs, **options_of(op, cell))
    whole = complete_outcome(op, backend, inputs, cotangents, cell)
    whole = {name: x for name, x in whole.items() if not name.startswith("d weights")}
    for begin, end in groups or [(b, b + 1) for b in range(shape.B)] + [(0, n) for n in range(2, shape.B)]:
        alone = complete_outcome(op, backend, part(op, inputs, begin, end), part(op, cotangents, begin, end), cell)
        alone = {name: alone[name] for name in whole}
        assert_equal(alone, part(op, whole, begin, end), f"of samples {begin} to {end} of {shape.B}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_a_sample_does_not_depend_on_its_batch(backend, op, layout, dtype):
    for cell in FEW_CELLS:
        assert_batch_invariant(op, backend, BATCH, cell, dtype, layout)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_nor_where_the_weights_outgrow_the_cache(backend, set_threads, cell, op, threads):
    set_threads(threads)
    wide = WIDE[cell.projection]
    shape = Shape(wide.T, 5, wide.C, wide.R, wide.sizes)
    assert_batch_invariant(op, backend, shape, cell, torch.float32, groups=[(0, 1), (4, 5), (0, 2), (1, 4)])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_nor_where_the_maps_outgrow_the_cache(backend, layout):
    groups = [(0, 1), (8, 9), (0, 2), (3, 7)]
    assert_batch_invariant("layer_update", backend, LARGE_MAPS, FEW_CELLS[0], torch.float32, layout, groups)


@pytest.mark.parametrize("op", OPS)
def test_permuted_samples_give_permuted_results(backend, op):
    cell, order = FEW_CELLS[2], torch.tensor([2, 0, 1])
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=backend.device)

    def permuted(tensors):
        return {
            name: x if name == "weights" else mapped(lambda y: y[:, order] if y.dim() == 3 else y[order], x)
            for name, x in tensors.items()
        }

    ours = outcome(getattr(dla, op), permuted(inputs), backend=backend.name, **options_of(op, cell))
    assert_equal(ours, permuted(outcome(getattr(dla, op), inputs, backend=backend.name, **options_of(op, cell))))
