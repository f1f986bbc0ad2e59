"""base_step: a stage of ours beside the eager reference and the published way, for pytest-benchmark."""

from functools import partial

import pytest

from bench.attention import STAGE, Stage, base_stage
from bench.published import base_stage_by_copying
from dla_kernels import reference

PEERS = {
    "eager, copying": base_stage_by_copying,
    "eager": partial(base_stage, base_step=reference.base_step),
    "ours": base_stage,
}


@pytest.mark.parametrize("peer", PEERS)
def test_base_step_forward_backward(benchmark, peer):
    benchmark(Stage(STAGE).forward_backward, PEERS[peer])
