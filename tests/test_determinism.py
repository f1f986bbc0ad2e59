"""The same bits from run to run, for any number of threads, and whatever else is in the batch."""

import pytest
import torch

import dla_kernels as dla

from .calls import cotangents_for, mapped, outcome
from .cases import FEW_CELLS, OPS, OPS_WITH_CELL, WIDE, Shape, cell_name, dtype_name, inputs_of, options_of
from .tolerances import assert_same_bits

BATCH = Shape.parse("T3-B9-C33-R5-HW5x3,4x4")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def threads():
    """Sets the number of threads; puts it back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_same_outcome(ours, theirs):
    for name, result in ours.items():
        assert_same_bits(result, theirs[name], name)


def shapes_of(cell):
    return [BATCH] if cell is None else [BATCH, WIDE[cell.projection]]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", OPS)
def test_runs_and_threads(backend, threads, op, dtype):
    for cell in FEW_CELLS if op in OPS_WITH_CELL else [None]:
        for shape in shapes_of(cell):
            inputs = inputs_of(op, shape, cell, dtype, layout="mixed", device=backend.device)
            options = options_of(op, cell)
            given = cotangents_for(op, inputs, **options)
            runs = []
            for count in (2, 2, 1):
                threads(count)
                runs.append(outcome(getattr(dla, op), inputs, given, backend=backend.name, **options))
            assert_same_outcome(runs[0], runs[1])
            assert_same_outcome(runs[0], runs[2])


def samples(value, shape, first, count):
    """Samples first .. first + count of everything that has a batch dimension."""

    def cut(x):
        axis = {(shape.B, shape.C): 0, (shape.T, shape.B, shape.C): 1}.get(tuple(x.shape), 0 if x.dim() == 4 else None)
        return x if axis is None else x.narrow(axis, first, count)

    return mapped(cut, value)


def assert_batch_invariant(op, backend, shape, cell, dtype, layout, pieces):
    inputs = inputs_of(op, shape, cell, dtype, layout=layout, device=backend.device)
    options = options_of(op, cell)
    given = cotangents_for(op, inputs, **options)
    whole = outcome(getattr(dla, op), inputs, given, backend=backend.name, **options)
    for first, count in pieces:
        part = outcome(
            getattr(dla, op),
            samples(inputs, shape, first, count),
            samples(given, shape, first, count),
            backend=backend.name,
            **options,
        )
        expected = samples(whole, shape, first, count)
        for name, result in part.items():
            if not name.startswith("d weights"):  # these are sums over the batch
                assert_same_bits(result, expected[name], f"{name} of samples {first}..{first + count}")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", OPS)
def test_batches_of_every_size(backend, op, dtype, layout):
    pieces = [(first, count) for count in range(1, BATCH.B + 1) for first in {0, BATCH.B - count}]
    for cell in FEW_CELLS if op in OPS_WITH_CELL else [None]:
        assert_batch_invariant(op, backend, BATCH, cell, dtype, layout, pieces)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("op", OPS_WITH_CELL)
def test_batches_under_large_weights(backend, op, cell):
    shape = WIDE[cell.projection]
    pieces = [(b, 1) for b in range(shape.B)]
    assert_batch_invariant(op, backend, shape, cell, torch.float32, "nchw", pieces)
