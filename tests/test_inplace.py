"""``inplace=True`` writes the maps where they are: the same bits, no new maps, never behind autograd's back."""

import pytest
import torch

import dla_kernels as dla

from .cases import DTYPES, FEW_CELLS, LAYOUTS, MIDDLE, Shape, cell_name, dtype_name, inputs_of, options_of
from .tolerances import assert_same_bits

OPS = ("rescale", "layer_update")
CELL = FEW_CELLS[0]
TAKEN = ("nchw", "channels_last", "misaligned", "batch_inside", "sliced")
REFUSED = ("sliced_last", "transposed", "cropped", "constant_planes", "shared_by_samples")
STREAMED = Shape.parse("T2-B9-C67-R16-HW65x63")


def run(op, inputs, backend, **options):
    """(maps, states) of either op."""
    result = getattr(dla, op)(**inputs, backend=backend.name, **options)
    return result if op == "layer_update" else (result, ())


def assert_in_place(op, inputs, backend, **options):
    out, states = run(op, inputs | {"xs": [x.clone() for x in inputs["xs"]]}, backend, **options)
    pointers = [x.data_ptr() for x in inputs["xs"]]
    with torch.no_grad():
        written, their_states = run(op, inputs, backend, inplace=True, **options)
    assert [x.data_ptr() for x in written] == pointers
    for x, result, expected in zip(inputs["xs"], written, out):
        assert result is x
        assert_same_bits(result, expected)
    for ours, theirs in zip(their_states, states):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", TAKEN)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_as_out_of_place(any_backend, op, layout, dtype):
    inputs = inputs_of(op, MIDDLE, CELL, dtype, layout=layout, device=any_backend.device)
    assert_in_place(op, inputs, any_backend, **options_of(op, CELL))


@pytest.mark.parametrize("op", OPS)
def test_a_layout_for_each_map(any_backend, op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
    inputs["xs"] = [LAYOUTS[layout](x) for layout, x in zip(TAKEN, inputs["xs"])]
    assert_in_place(op, inputs, any_backend, **options_of(op, CELL))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_maps_that_outgrow_the_cache(backend, cell, layout):
    inputs = inputs_of("layer_update", STREAMED, cell, torch.float32, layout=layout, device=backend.device)
    assert_in_place("layer_update", inputs, backend, cell=cell)


@pytest.mark.parametrize("op", OPS)
def test_every_second_channel_is_written_and_none_between(any_backend, op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, layout="sliced", device=any_backend.device)
    gaps = [x._base[:, 1::2] for x in inputs["xs"]]
    assert_in_place(op, inputs, any_backend, **options_of(op, CELL))
    assert all(gap.isnan().all() for gap in gaps)


@pytest.mark.parametrize("layout", REFUSED)
@pytest.mark.parametrize("op", OPS)
def test_refuses_other_layouts_and_shared_memory(any_backend, op, layout):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, layout=layout, device=any_backend.device)
    before = [x.clone() for x in inputs["xs"]]
    with torch.no_grad(), pytest.raises(ValueError, match=r"xs\[0\]: inplace expected a map .*, got "):
        run(op, inputs, any_backend, inplace=True, **options_of(op, CELL))
    for x, old in zip(inputs["xs"], before):
        assert_same_bits(x, old)


@pytest.mark.parametrize("op", OPS)
def test_refuses_while_gradients_are_enabled(any_backend, op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
    before = [x.clone() for x in inputs["xs"]]
    with pytest.raises(ValueError, match=r"inplace: expected torch.no_grad\(\).*got gradients enabled"):
        run(op, inputs, any_backend, inplace=True, **options_of(op, CELL))
    for x, old in zip(inputs["xs"], before):
        assert_same_bits(x, old)


@pytest.mark.parametrize("op", OPS)
def test_inference_mode_allows_it(any_backend, op):
    with torch.inference_mode():
        inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
        assert_in_place(op, inputs, any_backend, **options_of(op, CELL))


@pytest.mark.parametrize("op", OPS)
def test_autograd_notices_that_a_saved_map_was_overwritten(any_backend, op):
    """sin saves its input; a gradient from the overwritten one would be silently wrong."""
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
    leaf = inputs["xs"][0].clone().requires_grad_()
    saved = leaf * 1
    loss = saved.sin().sum()
    with torch.no_grad():
        run(op, inputs | {"xs": [saved.detach(), *inputs["xs"][1:]]}, any_backend, inplace=True, **options_of(op, CELL))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
