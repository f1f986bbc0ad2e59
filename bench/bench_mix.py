"""mix: ours beside the eager reference, for pytest-benchmark."""

import pytest
import torch

import dla_kernels as dla
from bench.attention import LAYERS
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_mix(benchmark, row, peer):
    x = torch.randn(row.B, row.C, row.HW, row.HW)
    benchmark(PEERS[peer].mix, [x, x + 1, x + 2], torch.randn(3, row.B, row.C))
