"""layer_update: ours beside the eager reference, for pytest-benchmark."""

import pytest

import dla_kernels as dla
from bench.common import SHAPES, Inputs
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_update(benchmark, shape, peer):
    inputs = Inputs(shape)
    benchmark(PEERS[peer].layer_update, inputs.xs, inputs.weights)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_update_forward_backward(benchmark, shape, peer):
    inputs = Inputs(shape)
    benchmark(inputs.forward_backward, PEERS[peer].layer_update)
