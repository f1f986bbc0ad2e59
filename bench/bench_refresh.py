"""refresh: ours beside the eager reference, for pytest-benchmark."""

import pytest

import dla_kernels as dla
from bench.common import SHAPES, Inputs
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_refresh(benchmark, shape, peer):
    inputs = Inputs(shape)
    last = tuple(s[-1] for s in dla.scan(inputs.y, inputs.weights))
    benchmark(PEERS[peer].refresh, inputs.y, last, inputs.weights)
