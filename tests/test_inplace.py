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
    """Return the maps and the states of either op."""
    result = getattr(dla, op)(**inputs, backend=backend.name, **options)
    return result if op == "layer_update" else (result, ())


def assert_in_place(op, inputs, backend, **options):
    pointers = [x.data_ptr() for x in inputs["xs"]]
    with torch.no_grad():
        out, states = run(op, inputs, backend, **options)  # of the same maps: their layout orders sums
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
def test_in_place_gives_the_same_bits_as_out_of_place(any_backend, op, layout, dtype):
    inputs = inputs_of(op, MIDDLE, CELL, dtype, layout=layout, device=any_backend.device)
    assert_in_place(op, inputs, any_backend, **options_of(op, CELL))


@pytest.mark.parametrize("op", OPS)
def test_in_place_gives_the_same_bits_with_another_layout_for_each_map(any_backend, op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
    inputs["xs"] = [LAYOUTS[layout](x) for layout, x in zip(TAKEN, inputs["xs"])]
    assert_in_place(op, inputs, any_backend, **options_of(op, CELL))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_in_place_gives_the_same_bits_where_maps_outgrow_the_cache(backend, cell, layout):
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
def test_in_place_refuses_layouts_it_cannot_write_and_leaves_the_maps_unchanged(any_backend, op, layout):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, layout=layout, device=any_backend.device)
    before = [x.clone() for x in inputs["xs"]]
    with torch.no_grad(), pytest.raises(ValueError, match=r"xs\[0\]: inplace expected a map .*, got "):
        run(op, inputs, any_backend, inplace=True, **options_of(op, CELL))
    for x, old in zip(inputs["xs"], before):
        assert_same_bits(x, old)


@pytest.mark.parametrize("op", OPS)
def test_in_place_is_refused_while_gradients_are_enabled(any_backend, op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
    before = [x.clone() for x in inputs["xs"]]
    with pytest.raises(ValueError, match=r"inplace: expected torch.no_grad\(\).*got gradients enabled"):
        run(op, inputs, any_backend, inplace=True, **options_of(op, CELL))
    for x, old in zip(inputs["xs"], before):
        assert_same_bits(x, old)


@pytest.mark.parametrize("op", OPS)
def test_inference_mode_allows_writing_in_place(any_backend, op):
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


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_ad_is_refused_in_place(any_backend, op):
    inputs = inputs_of(op, MIDDLE, CELL, torch.float32, device=any_backend.device)
    with (
        torch.no_grad(),
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(ValueError, match="inplace: expected no forward-mode AD"),
    ):
        run(op, inputs, any_backend, inplace=True, **options_of(op, CELL))


# ---- maps that share memory; each makes two maps [2, 6, 4, 4] ----


def windows(device, offset, stride=(96, 16, 4, 1)):
    memory = torch.randn(4000, device=device)
    return [memory.as_strided((2, 6, 4, 4), stride, at) for at in (0, offset)]


APART = {
    "one after the other": lambda device: windows(device, 192),
    "halves of one map's channels": lambda device: list(torch.randn(2, 12, 4, 4, device=device).chunk(2, 1)),
    "every second channel": lambda device: windows(device, 16, (192, 32, 4, 1)),
    "every second sample": lambda device: windows(device, 96, (192, 16, 4, 1)),
    "every second channel, the next sample's between": lambda device: windows(device, 192, (176, 32, 4, 1)),
    "channels last halves of the batch": lambda device: windows(device, 192, (96, 1, 24, 6)),
}
SHARED = {
    "the same": lambda device: windows(device, 0),
    "one element in common": lambda device: windows(device, 191),
    "from between two samples on": lambda device: windows(device, 98, (99, 16, 4, 1)),
    "half in common": lambda device: windows(device, 96),
    "a channel further": lambda device: windows(device, 32, (192, 32, 4, 1)),
    "other strides in between": lambda device: [
        torch.as_strided(m := torch.randn(4000, device=device), (2, 6, 4, 4), (96, 16, 4, 1)),
        m.as_strided((2, 6, 4, 4), (96, 1, 24, 6), 40),
    ],
}


def of_two_maps(make, backend):
    xs = make(backend.device)
    return {"xs": xs, "d": torch.randn(2, 2, 6, device=backend.device)}


@pytest.mark.parametrize("make", APART.values(), ids=APART)
def test_maps_side_by_side_in_one_memory_are_accepted(any_backend, make):
    assert_in_place("rescale", of_two_maps(make, any_backend), any_backend)


@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_maps_that_share_memory_are_refused(any_backend, make):
    inputs = of_two_maps(make, any_backend)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"xs\[1\]: inplace expected maps of separate memory.*overlaps xs\[0\]"),
    ):
        dla.rescale(**inputs, inplace=True, backend=any_backend.name)


@pytest.mark.parametrize("stride", [(96, 16, 3, 1), (96, 8, 4, 1), (48, 16, 4, 1), (0, 16, 4, 1)])
def test_a_map_that_shares_memory_with_itself_is_refused(any_backend, stride):
    x = torch.randn(400).to(any_backend.device).as_strided((2, 6, 4, 4), stride)
    with torch.no_grad(), pytest.raises(ValueError, match=r"xs\[0\]: inplace expected a map "):
        dla.rescale([x], torch.ones(1, 2, 6, device=any_backend.device), inplace=True, backend=any_backend.name)


@pytest.mark.parametrize("C", [1, 2])
def test_pixels_may_lie_apart_where_there_is_one_channel(any_backend, C):
    x = torch.randn(2, C, 3, 8, device=any_backend.device)[..., ::2]
    inputs = {"xs": [x], "d": torch.randn(1, 2, C, device=any_backend.device)}
    if C == 1:
        assert_in_place("rescale", inputs, any_backend)
    else:
        with torch.no_grad(), pytest.raises(ValueError, match=r"xs\[0\]: inplace expected a map that is NCHW"):
            dla.rescale(**inputs, inplace=True, backend=any_backend.name)


def test_a_negated_view_is_refused(any_backend):
    x = torch.zeros(2, 6, 4, 4, dtype=torch.complex64, device=any_backend.device).conj().imag
    x = torch.as_strided(x, (2, 6, 4, 4), (96, 16, 4, 1))
    assert x.is_neg()
    with torch.no_grad(), pytest.raises(ValueError, match=r"xs\[0\]: inplace expected (plain|a map)"):
        dla.rescale([x], torch.ones(1, 2, 6, device=any_backend.device), inplace=True, backend=any_backend.name)
