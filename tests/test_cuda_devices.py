"""The CUDA kernels are right on simulated devices that differ in what a plan looks at, and batch-invariant on each."""

from typing import NamedTuple

import pytest
import torch

from dla_kernels.backends import BACKENDS, SIMT
from dla_kernels.cells import Cell

from .calls import check_parity
from .cases import FEW_CELLS, Shape, cell_name, dtype_name, inputs_of
from .conftest import Served
from .cuda_plans import Device, Plans, Problem
from .test_determinism import assert_batch_invariant

pytestmark = [
    pytest.mark.skipif(not SIMT, reason="DLA_KERNELS_SIMT is not set: a GPU cannot be another"),
    pytest.mark.skipif(not BACKENDS["cuda"].available, reason=f"no CUDA backend: {BACKENDS['cuda'].reason}"),
]

SIMULATED = Served("cuda", "cpu")
JOINT, SPLIT, DENSE = FEW_CELLS
L2 = 16 << 10


class Simulated(NamedTuple):
    processors: int
    shared: int
    l2: int
    largest_cluster: int
    threads: int

    def __str__(self):
        return ",".join(map(str, self))

    @property
    def described(self):
        """Return the device as current_device.cu describes it."""
        return Device(*self[:2], 2 * (self.shared + 1024), *self[2:], group=self.largest_cluster)


class Place(NamedTuple):
    device: Simulated
    shape: Shape
    path: str  # of a bottleneck's scan with maps
    group: int
    samples: int  # of a tile


def place(device, shape, path, group=1, samples=1):
    return Place(Simulated(*device), Shape.parse(shape), path, group, samples)


# C is never a multiple of 8, and not of what a cluster takes; R is no multiple of 4, unless the name says so.
PLACES = {
    "no clusters": place((4, 12000, L2, 1, 64), "T3-B3-C17-R5-HW5x3,4x4", "portable"),
    "clusters of 2": place((4, 12000, L2, 2, 32), "T3-B3-C37-R6-HW5x3,4x4", "on-chip", 2),
    "of 4": place((4, 12000, L2, 4, 64), "T3-B3-C37-R6-HW5x3,4x4", "on-chip", 4),
    "of 8, of which some have no channels": place((8, 12000, L2, 8, 32), "T2-B2-C65-R7-HW3x3", "on-chip", 8),
    "too few channels for the cluster": place((8, 12000, L2, 8, 64), "T3-B3-C17-R5-HW5x3", "on-chip", 2),
    "nearly all in the workspace": place((64, 1100, L2, 1, 64), "T3-B3-C17-R5-HW5x3,4x4", "portable"),
    "in clusters too": place((64, 1100, L2, 4, 64), "T4-B3-C37-R9-HW5x3,4x4", "on-chip", 4),
    "all fits": place((2, 200000, L2, 4, 128), "T3-B2-C37-R6-HW5x3,4x4", "on-chip", 4),
    "256 threads": place((4, 60000, L2, 2, 256), "T3-B2-C37-R6-HW5x3,4x4", "on-chip", 2),
    "several chunks": place((64, 1500, L2, 2, 32), "T9-B2-C21-R11-HW3x2", "on-chip", 2),
    "samples share a tile": place((1, 1100, L2, 1, 64), "T3-B9-C17-R10-HW5x3,4x4", "weights-bound", 1, 8),
    "two samples, R a multiple of 4": place((2, 1100, L2, 1, 32), "T3-B7-C19-R12-HW3x3", "weights-bound", 1, 2),
    # Beside one sample the copy of W1 would have room, beside four not.
    "a copy of some weights": place((2, 4200, L2, 1, 32), "T3-B9-C37-R10-HW5x3,4x4", "weights-bound", 1, 4),
    "shared copies": place((2, 60000, L2, 1, 32), "T3-B9-C37-R10-HW5x3,4x4", "weights-bound", 1, 4),
    "and in clusters": place((8, 1100, L2, 4, 32), "T4-B9-C37-R18-HW3x3", "weights-bound", 4, 4),
}


@pytest.fixture(params=PLACES)
def where(request, monkeypatch):
    place = PLACES[request.param]
    monkeypatch.setenv("DLA_SIMT_DEVICE", str(place.device))
    if place.samples > 1:
        monkeypatch.setenv("DLA_KERNELS_SAMPLES", str(place.samples))
    return place


def problem_of(place, cell, backward=False):
    T, B, C, R, _ = vars(place.shape).values()
    sizes = place.shape.sizes
    pixels = sum(sizes[t % len(sizes)][0] * sizes[t % len(sizes)][1] for t in range(T))
    bytes_read = 4 * C * pixels * (2 if backward else 1)
    return Problem(backward, cell.projection, 3, T, B, C, R, bytes_read)


@pytest.mark.slow
def test_each_simulated_device_makes_the_plan_it_stands_for(tmp_path):
    plans = Plans(tmp_path)
    for name, place in PLACES.items():
        plan = plans(problem_of(place, JOINT), place.device.described._replace(samples=place.samples))
        found = (plan["path"], plan["group"], plan["samples"])
        assert found == (place.path, place.group, place.samples), f"{name}: {plan}"
    back = {name: plans(problem_of(p, JOINT, backward=True), p.device.described) for name, p in PLACES.items()}
    assert back["all fits"]["workspace"] == 0
    assert {"W1h", "W2h"} <= back["all fits"]["place"].keys()
    in_shared = [name for name, at in back["nearly all in the workspace"]["place"].items() if at >= 0]
    assert len(in_shared) < len(back["nearly all in the workspace"]["place"]) / 2, in_shared
    assert plans(problem_of(PLACES["several chunks"], JOINT), PLACES["several chunks"].device.described)["chunk"] < 9
    plans.close()


@pytest.mark.parametrize(
    ("cell", "dtype", "layout"),
    [
        (JOINT, torch.float32, "mixed"),
        (JOINT, torch.float64, "channels_last"),
        (SPLIT, torch.float32, "channels_last"),
        (SPLIT, torch.float64, "nchw"),
        (DENSE, torch.float32, "nchw"),
        (DENSE, torch.bfloat16, "channels_last"),
        (Cell("dia", projection="joint"), torch.bfloat16, "nchw"),
    ],
    ids=lambda x: cell_name(x) if isinstance(x, Cell) else dtype_name(x) if isinstance(x, torch.dtype) else x,
)
def test_parity_of_layer_update_on_every_simulated_device(where, cell, dtype, layout):
    inputs = inputs_of("layer_update", where.shape, cell, dtype, layout=layout, weight_dtype=accumulated(dtype))
    check_parity("layer_update", SIMULATED, inputs, where.shape.longest_sum, cell=cell)


def accumulated(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("op", ["scan", "refresh"])
def test_parity_of_scan_and_refresh_on_every_simulated_device(where, op, cell):
    inputs = inputs_of(op, where.shape, cell, torch.float32)
    check_parity(op, SIMULATED, inputs, where.shape.longest_sum, cell=cell)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("op", ["scan", "refresh", "layer_update", "light_step"])
def test_a_sample_does_not_depend_on_its_batch(where, op, cell):
    B = where.shape.B
    groups = [*((b, b + 1) for b in range(B)), (1, B)]
    assert_batch_invariant(op, SIMULATED, where.shape, cell, torch.float32, groups, layout="mixed")
