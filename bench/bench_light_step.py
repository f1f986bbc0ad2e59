"""light_step: ours beside the eager reference, for pytest-benchmark."""

import pytest

import dla_kernels as dla
from bench.attention import LAYERS, Layer
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_light_step(benchmark, row, peer):
    benchmark(Layer(row).forward, PEERS[peer].light_step)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_light_step_forward_backward(benchmark, row, peer):
    benchmark(Layer(row).forward_backward, PEERS[peer].light_step)
