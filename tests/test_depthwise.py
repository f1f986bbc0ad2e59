"""The value of layer attention: a 3x3 filter per channel, and the means on both of its sides."""

import pytest
import torch

from .calls import check_parity
from .cases import DTYPES, LAYOUT_NAMES, SHAPES, Shape, dtype_name, inputs_of
from .interpreter import some

# Borders everywhere: maps of one row, one column, one pixel; rows that fill a vector, or one more; many rows.
BORDERS = ["1x1", "1x9", "9x1", "2x2", "3x5", "7x7", "4x16", "5x17", "33x6", "10x67"]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(backend, shape, dtype):
    inputs = inputs_of("depthwise", shape, None, dtype, device=backend.device)
    check_parity("depthwise", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("size", BORDERS)
def test_every_border(backend, size, layout):
    for C in some(backend, (1, 3, 18), 1):
        shape = Shape.parse(f"T1-B2-C{C}-HW{size}")
        for dtype in (torch.float64, torch.float32):
            inputs = inputs_of("depthwise", shape, None, dtype, layout=layout, device=backend.device)
            check_parity("depthwise", backend, inputs, shape.longest_sum)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_every_layout(backend, layout, dtype):
    shape = Shape.parse("T1-B3-C19-HW5x3")
    inputs = inputs_of("depthwise", shape, None, dtype, layout=layout, device=backend.device)
    check_parity("depthwise", backend, inputs, shape.longest_sum)
