"""norm_add: ours beside the eager reference, for pytest-benchmark."""

import pytest
import torch

import dla_kernels as dla
from bench.attention import LAYERS
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_norm_add(benchmark, row, peer):
    x = torch.randn(row.B, row.C, row.HW, row.HW)
    one = torch.ones(row.C)
    benchmark(PEERS[peer].norm_add, x, x + 1, one, one, (one, one), relu=True)
