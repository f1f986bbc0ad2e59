"""depthwise: ours beside the eager reference, for pytest-benchmark."""

import pytest
import torch

import dla_kernels as dla
from bench.attention import LAYERS
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_depthwise(benchmark, row, peer):
    x = torch.randn(row.B, row.C, row.HW, row.HW)
    benchmark(PEERS[peer].depthwise, x, torch.randn(row.C, 1, 3, 3))
