"""``layer_update`` is pool, scan, refresh and rescale as one launch."""

import pytest
import torch

import dla_kernels as dla

from .calls import check_parity
from .cases import (
    DTYPES,
    FEW_CELLS,
    LAYOUT_NAMES,
    MIDDLE,
    SHAPES,
    Shape,
    cell_name,
    dtype_name,
    inputs_of,
)
from .cell_parity import CellParity
from .tolerances import assert_same_bits

OP = "layer_update"
# A sample outgrows a core's cache and the results are long enough to be written past it.
STREAMED = Shape.parse("T2-B9-C67-R16-HW65x63")


class TestLayerUpdate(CellParity):
    op = OP


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("cell", FEW_CELLS[:2], ids=cell_name)
def test_parity_in_every_layout(backend, cell, layout, dtype):
    inputs = inputs_of(OP, MIDDLE, cell, dtype, layout=layout, device=backend.device)
    check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=cell)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=dtype_name)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_parity_with_float32_weights_beside_any_maps(backend, cell, dtype):
    inputs = inputs_of(OP, MIDDLE, cell, dtype, weight_dtype=torch.float32, device=backend.device)
    check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=cell)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed"])
def test_parity_where_maps_outgrow_the_cache(backend, layout, dtype):
    cell = dla.PAPER_DSU
    inputs = inputs_of(OP, STREAMED, cell, dtype, layout=layout, device=backend.device)
    check_parity(OP, backend, inputs, STREAMED.longest_sum, cell=cell)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed"])
@pytest.mark.parametrize("shape", [MIDDLE, SHAPES[6], STREAMED], ids=str)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_layer_update_equals_the_ops_it_is_made_of(backend, cell, shape, layout, dtype):
    inputs = inputs_of(OP, shape, cell, dtype, layout=layout, device=backend.device)
    xs, weights, state = inputs.values()
    options = {"cell": cell, "backend": backend.name}
    out, states = dla.layer_update(**inputs, **options)

    y = dla.gap(xs, backend=backend.name)
    parts_states = dla.scan(y, weights, state=state, **options)
    if backend.name != "cpu":  # how many blocks share a sample, and so the order of sums, is each op's own choice
        d = dla.refresh(y, tuple(s[-1] for s in parts_states), weights, **options)
        torch.testing.assert_close(states, parts_states)
        torch.testing.assert_close(out, dla.rescale(xs, d, backend=backend.name))
        return
    for i, (ours, parts) in enumerate(zip(states, parts_states)):
        assert_same_bits(ours, parts, f"states[{i}]")

    d = dla.refresh(y, tuple(s[-1] for s in parts_states), weights, **options)
    for t, (ours, parts) in enumerate(zip(out, dla.rescale(xs, d, backend=backend.name))):
        assert_same_bits(ours, parts, f"out[{t}]")
