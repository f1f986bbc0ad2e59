"""Elements may lie more than 2^31 apart. The memory between them is reserved but never touched."""

import pytest
import torch

import dla_kernels as dla

from .cases import Shape, weights
from .tolerances import assert_same_bits

SHAPE = Shape.parse("T1-B2-C6-R3-HW4x4")
FAR = 2**31 + 64
STRIDES = {
    "samples": (FAR, 16, 4, 1),
    "channels": (16, FAR // 5 // 8 * 8, 4, 1),
    "pixels": (6, 1, 4 * (FAR // 15), FAR // 15),
}


@pytest.fixture
def far_map(backend):
    """Return a maker of bfloat16 maps [2, 6, 4, 4] whose last element is past 2^31."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # else all of it would be touched

    def make(name):
        strides = STRIDES[name]
        reach = 1 + sum(s * (n - 1) for s, n in zip(strides, (2, 6, 4, 4)))
        assert reach > 2**31
        memory = torch.empty(reach, dtype=torch.bfloat16, device=backend.device)
        return memory.as_strided((2, 6, 4, 4), strides).copy_(torch.randn(2, 6, 4, 4))

    return make


@pytest.mark.parametrize("apart", STRIDES)
def test_elements_more_than_2_to_the_31_apart_are_found(backend, far_map, apart):
    x = far_map(apart)
    near = [x.clone(memory_format=torch.channels_last if apart == "pixels" else torch.contiguous_format)]
    w = weights(dla.PAPER_DSU, SHAPE, torch.float32, backend.device)
    out, states = dla.layer_update([x], w, backend=backend.name)
    expected, expected_states = dla.layer_update(near, w, backend=backend.name)
    assert_same_bits(states[0], expected_states[0])
    assert_same_bits(out[0], expected[0])
    if apart != "channels":  # in place
        with torch.no_grad():
            dla.layer_update([x], w, inplace=True, backend=backend.name)
        assert_same_bits(x, expected[0])
