"""attend: ours beside the eager reference, for pytest-benchmark."""

import pytest
import torch

import dla_kernels as dla
from bench.attention import LAYERS, D, attention
from dla_kernels import reference

PEERS = {"eager": reference, "ours": dla}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("row", LAYERS, ids=str)
def test_attend(benchmark, row, peer):
    x = torch.randn(row.B, row.C, row.HW, row.HW)
    y, past = x.mean((2, 3)), [torch.randn(n * 11, row.B, row.C) for n in (1, 1, 2)]
    q, k, _ = attention(row.C)
    benchmark(PEERS[peer].attend, y, q, k, past, heads=row.C // D)
