"""The CUDA kernels on the SIMT shim give the same bits whatever order their threads run in."""

import os
import threading

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS, SIMT
from dla_kernels.cells import Cell

from .calls import cotangents_for, outcome
from .cases import FEW_CELLS, OPS_WITH_CELL, Shape, cell_name, inputs_of, options_of
from .tolerances import assert_same_bits

pytestmark = [
    pytest.mark.skipif(not SIMT, reason="DLA_KERNELS_SIMT is not set: a GPU orders its threads as it likes"),
    pytest.mark.skipif(not BACKENDS["cuda"].available, reason=f"no CUDA backend: {BACKENDS['cuda'].reason}"),
]

SEEDS = range(1, 21)
CELLS = [*FEW_CELLS, Cell("dsu-paper", projection="split")]
# A device (processors, shared bytes, L2, largest cluster, threads), and a shape that meets on it:
PLACES = {
    # clusters of four; one group takes six tiles in turn; layers are exchanged one or two at a time
    "clusters": ("2,2048,1024,4,64", Shape.parse("T5-B6-C36-R12-HW5x3,4x4")),
    # one block a sample, nearly all in the workspace, four samples share a tile
    "shared tiles": ("1,1100,1000000,1,64", Shape.parse("T4-B9-C17-R5-HW3x3,2x1")),
}


def under_seed(seed, f):
    """Return f(), called on an OS thread of its own: the shim's state is per thread, and begins with DLA_SIMT_SEED."""
    results, before = [], os.environ.get("DLA_SIMT_SEED")

    def work():
        try:
            results.append(f())
        except BaseException as error:
            results.append(error)

    os.environ["DLA_SIMT_SEED"] = str(seed)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        del os.environ["DLA_SIMT_SEED"]
        if before is not None:
            os.environ["DLA_SIMT_SEED"] = before
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def test_a_seed_changes_the_schedule():
    """Maps that all lie in the same memory are multiplied in the order of the blocks, and rounding shows it."""
    start, d = torch.rand(1, 8, 2, 2) + 0.5, torch.rand(9, 1, 8) + 0.5

    def products():
        x = start.clone()
        torch.ops.dla_simt.rescale_([x] * len(d), d)
        return x

    runs = [under_seed(seed, products) for seed in SEEDS]
    assert len({tuple(x.flatten().tolist()) for x in runs}) > 10
    for seed, x in zip(SEEDS, runs):
        torch.testing.assert_close(x, start * d.prod(0)[..., None, None])
        assert_same_bits(under_seed(seed, products), x, f"seed {seed} again")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell_name(cell)}-{cell.output}")
def test_the_kernels_give_the_same_bits_under_every_schedule(monkeypatch, cell, op, place):
    device, shape = PLACES[place]
    monkeypatch.setenv("DLA_SIMT_DEVICE", device)
    inputs = inputs_of(op, shape, cell, torch.float32, layout="mixed")
    cotangents = cotangents_for(op, inputs, **options_of(op, cell))

    def everything():
        return outcome(getattr(dla, op), inputs, cotangents, backend="cuda", **options_of(op, cell))

    first = under_seed(0, everything)
    for seed in SEEDS:
        again = under_seed(seed, everything)
        assert again.keys() == first.keys()
        for name in first:
            assert not first[name].isnan().any(), name
            assert_same_bits(again[name], first[name], f"{name} under seed {seed}")
