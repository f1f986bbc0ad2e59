"""Results have the same bits from run to run, on any number of threads, and whatever else is in the batch."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS

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
    is_shared,
    options_of,
    with_cells,
    with_layouts,
)
from .interpreter import some
from .tolerances import assert_same_bits

ROOT = Path(__file__).parent.parent

# Nine samples: a block and one more. The large maps do not fit a core's cache, the wide weights neither.
BATCH = Shape.parse("T3-B9-C65-R21-HW5x3,8x8,1x1")
LARGE_MAPS = Shape.parse("T2-B9-C65-R21-HW66x64")


def complete_outcome(op, backend, inputs, cotangents, cell):
    return outcome(getattr(dla, op), inputs, cotangents, backend=backend.name, **options_of(op, cell))


def assert_equal(ours, theirs, note=""):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same_bits(ours[name], theirs[name], f"{name} {note}")


def cells_for(op):
    return [cell for _, cell in with_cells([op], FEW_CELLS)]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", OPS)
def test_results_have_the_same_bits_from_run_to_run_and_on_any_number_of_threads(backend, set_threads, op, dtype):
    for cell, layout in some(backend, zip(cells_for(op), ["mixed", "nchw", "channels_last"]), 1):
        inputs = inputs_of(op, BATCH, cell, dtype, layout=layout, device=backend.device)
        cotangents = cotangents_for(op, inputs, **options_of(op, cell))
        first = complete_outcome(op, backend, inputs, cotangents, cell)
        for threads in some(backend, (1, 2, 2), 1):
            set_threads(threads)
            again = complete_outcome(op, backend, inputs, cotangents, cell)
            assert_equal(again, first, f"on {threads} threads")


@pytest.mark.parametrize("large", ["maps", "weights"])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_maps_or_weights_that_outgrow_the_cache_give_the_same_bits_on_any_number_of_threads(
    backend, set_threads, cell, large
):
    shape = LARGE_MAPS if large == "maps" else WIDE[cell.projection]
    inputs = inputs_of("layer_update", shape, cell, torch.float32, device=backend.device)
    cotangents = cotangents_for("layer_update", inputs, cell=cell)
    set_threads(1)
    alone = complete_outcome("layer_update", backend, inputs, cotangents, cell)
    set_threads(2)
    assert_equal(complete_outcome("layer_update", backend, inputs, cotangents, cell), alone, "on 2 threads")


# ---- batch invariance ----


def part(op, tensors, begin, end):
    """Return the samples begin .. end. They lie along the first axis of maps and states, and along the second of y, d
    and all states [T, B, C]."""

    def cut(name, x):
        return x if is_shared(name) else x[:, begin:end] if x.dim() == 3 else x[begin:end]

    return {
        name: cut(name, x) if isinstance(x, torch.Tensor) else mapped(lambda y, n=name: cut(n, y), x)
        for name, x in tensors.items()
    }


def assert_batch_invariant(op, backend, shape, cell, dtype, groups, layout="nchw"):
    """Check that every group of samples alone gives the bits it gives inside the whole batch; weights sum over all."""
    inputs = inputs_of(op, shape, cell, dtype, layout=layout, device=backend.device)
    cotangents = cotangents_for(op, inputs, **options_of(op, cell))
    whole = complete_outcome(op, backend, inputs, cotangents, cell)
    whole = {name: x for name, x in whole.items() if not is_shared(name.removeprefix("d "))}
    for begin, end in groups:
        alone = complete_outcome(op, backend, part(op, inputs, begin, end), part(op, cotangents, begin, end), cell)
        alone = {name: alone[name] for name in whole}
        assert_equal(alone, part(op, whole, begin, end), f"of samples {begin} to {end} of {shape.B}")


@pytest.mark.parametrize(("op", "layout"), with_layouts(OPS, ["nchw", "channels_last"]))
def test_a_sample_does_not_depend_on_its_batch(backend, op, layout):
    sizes = [(0, n) for n in range(1, BATCH.B)]
    places = [(b, b + 1) for b in range(1, BATCH.B)]
    groups = some(backend, sizes + places, 3)
    for cell in some(backend, cells_for(op), 1):
        assert_batch_invariant(op, backend, BATCH, cell, torch.float32, groups, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", OPS)
def test_a_sample_does_not_depend_on_its_batch_in_any_dtype(backend, op, dtype):
    for cell in some(backend, cells_for(op), 1):
        assert_batch_invariant(op, backend, BATCH, cell, dtype, [(0, 1), (8, 9), (2, 7)], layout="mixed")


@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_a_sample_does_not_depend_on_its_batch_where_weights_outgrow_the_cache(backend, cell, op):
    shape = replace(WIDE[cell.projection], B=5)
    assert_batch_invariant(op, backend, shape, cell, torch.float32, [(0, 1), (1, 5)])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_sample_does_not_depend_on_its_batch_where_maps_outgrow_the_cache(backend, layout):
    groups = [(0, 1), (8, 9), (0, 2), (3, 7)]
    assert_batch_invariant("layer_update", backend, LARGE_MAPS, FEW_CELLS[0], torch.float32, groups, layout)


@pytest.mark.parametrize("op", OPS)
def test_permuted_samples_give_permuted_results(backend, op):
    cell, order = FEW_CELLS[2], torch.tensor([2, 0, 1])
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=backend.device)

    def permuted(tensors):
        return {
            name: x if is_shared(name) else mapped(lambda y: y[:, order] if y.dim() == 3 else y[order], x)
            for name, x in tensors.items()
        }

    ours = outcome(getattr(dla, op), permuted(inputs), backend=backend.name, **options_of(op, cell))
    assert_equal(ours, permuted(outcome(getattr(dla, op), inputs, backend=backend.name, **options_of(op, cell))))


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("op", OPS_WITH_CELL)
def test_results_do_not_depend_on_where_weights_begin_in_memory(backend, op, cell):
    """Views into flat parameters begin anywhere; kernels that read 16 bytes at a time must not sum them otherwise."""
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=backend.device)
    results = []
    for offset in (0, 1, 2):
        views = [w.new_empty(w.numel() + offset)[offset:].view(w.shape).copy_(w) for w in inputs["weights"]]
        results.append(
            outcome(
                getattr(dla, op),
                inputs | {"weights": type(inputs["weights"])(*views)},
                None,
                backend=backend.name,
                **options_of(op, cell),
            )
        )
    for other in results[1:]:
        for name, x in results[0].items():
            assert_same_bits(other[name], x, name)


# ---- caches ----

DIGESTS = """
import hashlib, torch
from tests.calls import cotangents_for, outcome
from tests.cases import FEW_CELLS, OPS, Shape, inputs_of, options_of
import dla_kernels as dla
for op in OPS:
    torch.manual_seed(0)
    inputs = inputs_of(op, Shape.parse("T3-B9-C65-R21-HW17x14"), FEW_CELLS[0], torch.float32)
    options = options_of(op, FEW_CELLS[0])
    found = outcome(getattr(dla, op), inputs, cotangents_for(op, inputs, **options), backend="cpu", **options)
    for name, x in found.items():
        print(op, name, hashlib.sha256(x.detach().contiguous().numpy()).hexdigest())
"""


@pytest.mark.slow
def test_the_size_of_the_cache_changes_no_bit():
    """The size decides how many samples, channels and weights go together."""
    assert BACKENDS["cpu"].available

    def digests(size):
        environment = os.environ | {"DLA_KERNELS_L2": str(size), "TRITON_INTERPRET": "0", "DLA_KERNELS_SIMT": "0"}
        command = [sys.executable, "-c", DIGESTS]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    small, large = digests(4 << 10), digests(64 << 20)
    assert len(small.splitlines()) > 50
    assert small == large
