"""DLA-B and MRLA-B work inside a network: reference and kernels equal the published way of copying."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

import dla_kernels as dla
from bench.targets.published import base_stage_by_copying as by_copying
from bench.targets.steps import Row, Stage, base_stage
from dla_kernels import reference
from dla_kernels.attention import Attention

from .calls import check_parity
from .cases import CELLS, DTYPES, FEW_CELLS, LAYOUT_NAMES, MIDDLE, Shape, cell_name, dtype_name, inputs_of, state_forms
from .stages import cell_weights, check_moments, grown, layers
from .tolerances import assert_same_bits

OP = "base_step"
DOUBLE = torch.float64


def lazily(stage_layers, weights, heads, base_step=reference.base_step, **options):
    """Return o of every layer, and what the stage holds at the end."""
    stage, out = None, []
    for x, filters in stage_layers:
        o, stage, _ = base_step(x, stage, filters, weights, heads=heads, **options)
        out.append(o)
    return out, stage


@pytest.mark.parametrize("cell", [*CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
@pytest.mark.parametrize("T, size", [(1, "3x5"), (3, "1x1"), (4, "3x5")])
def test_a_stage_of_the_reference_equals_the_published_copying_stage_gradients_included(cell, T, size):
    shape = Shape.parse(f"T{T}-B2-C6-R3-HW{size}")
    given, w = layers(shape), cell_weights(cell, shape)
    options = {"heads": 3} | ({"cell": cell} if cell else {})
    arriving = [torch.randn_like(x) for x, _ in given]
    results = []
    for way in (lambda *args, **kw: lazily(*args, **kw)[0], by_copying):
        fresh = [(grown(x), Attention(*map(grown, filters))) for x, filters in given]
        leaves_w = w and type(w)(*map(grown, w))
        out = way(fresh, leaves_w, **options)
        leaves = [t for x, filters in fresh for t in (x, *filters)] + list(leaves_w or ())
        grads = torch.autograd.grad(out, leaves, arriving, materialize_grads=True)
        results.append([o.detach() for o in out] + list(grads))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_twelve_layers_equal_the_published_copying_stage_and_keep_their_values(cell):
    shape = Shape.parse("T12-B2-C8-R3-HW3x3")
    given, w = layers(shape), cell_weights(cell, shape)
    out, stage = lazily(given, w, heads=2, cell=cell)
    torch.testing.assert_close(out, by_copying(given, w, heads=2, cell=cell))
    for (x, filters), value in zip(given, stage.values):  # as they were, however often refreshed
        torch.testing.assert_close(value, torch.conv2d(x, filters.v, padding=1, groups=8), rtol=0, atol=0)
    assert [t.shape for t in (stage.keys, stage.pooled, stage.scale)] == [(12, 2, 8)] * 3


def test_the_first_layer_attends_to_itself():
    shape = Shape.parse("T1-B2-C6-HW3x5")
    ((x, filters),) = given = layers(shape)
    out, _ = lazily(given, None, heads=3)
    torch.testing.assert_close(out[0], torch.conv2d(x, filters.v, padding=1, groups=6))


def test_the_reference_is_differentiable():
    shape = Shape.parse("T2-B2-C4-R2-HW2x1")
    given, w = layers(shape), cell_weights(dla.RELEASED_DSU, shape)

    def f(x1, x2, q, k, v, *w):
        filters = Attention(q, k, v)
        return tuple(lazily([(x1, filters), (x2, filters)], dla.Split(*w), heads=2, cell=dla.RELEASED_DSU)[0])

    assert gradcheck(f, [t.requires_grad_() for t in (given[0][0], given[1][0], *given[0][1], *w)])


# ---- the kernels ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_parity_of_a_step_with_every_cell_from_every_state(backend, cell, dtype):
    for form in (None, *state_forms(cell)):
        inputs = inputs_of(OP, MIDDLE, cell, dtype, form=form, device=backend.device)
        check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=cell, heads=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    inputs = inputs_of(OP, MIDDLE, FEW_CELLS[1], dtype, layout=layout, device=backend.device)
    check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=FEW_CELLS[1], heads=1)


@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
@pytest.mark.parametrize(("T", "C", "D", "size"), [(12, 32, 16, "3x5"), (3, 64, 32, "7x7"), (5, 6, 6, "1x1")])
def test_a_stage_of_kernels_equals_the_published_copying_stage_gradients_included(backend, cell, T, C, D, size):
    shape = Shape.parse(f"T{T}-B2-C{C}-R3-HW{size}")
    options = {"heads": C // D} | ({"cell": cell} if cell else {})
    given = [(x.to(backend.device), Attention(*(t.to(backend.device) for t in f))) for x, f in layers(shape)]
    w = cell_weights(cell, shape)
    arriving = [torch.randn_like(x) for x, _ in given]
    results = []
    for way in (
        lambda *a, **kw: lazily(*a, base_step=partial(dla.base_step, backend=backend.name), **kw)[0],
        by_copying,
    ):
        fresh = [(grown(x), Attention(*map(grown, filters))) for x, filters in given]
        leaves_w = w and type(w)(*(grown(t.to(backend.device)) for t in w))
        out = way(fresh, leaves_w, **options)
        leaves = [t for x, filters in fresh for t in (x, *filters)] + list(leaves_w or ())
        results.append([*out, *torch.autograd.grad(out, leaves, arriving, materialize_grads=True)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("T", [2, 6])
def test_autograd_holds_about_one_map_for_each_layer(backend, T):
    check_maps_held(backend.name, backend.device, T)


@pytest.mark.parametrize("T", [12, 36])
def test_autograd_holds_about_one_map_for_each_of_many_layers(T):
    """It holds the same whoever computes, and in Triton's interpreter so many layers take long."""
    check_maps_held("cpu", "cpu", T)


def check_maps_held(backend, device, T):
    stage = Stage(Row(2, 32, 16, T), device=device)
    held = stage.maps_held(partial(base_stage, base_step=partial(dla.base_step, backend=backend)))
    assert T <= held <= T + 3


def test_autograd_of_the_copying_stage_holds_a_map_for_each_pair_of_layers():
    """``base_step`` has autograd hold about one map for each layer instead."""
    assert Stage(Row(2, 32, 16, 12)).maps_held(by_copying) >= 12 * 13 / 2


def test_moments_are_those_of_the_output(backend):
    inputs = inputs_of(OP, MIDDLE, dla.PAPER_DSU, torch.float32, device=backend.device)
    o, _, moments = dla.base_step(**inputs, heads=1, moments=True, backend=backend.name)
    check_moments(moments, o)


@pytest.mark.parametrize("cell", [dla.RELEASED_DSU, dla.Cell("lstm"), None], ids=["dsu", "lstm", "mrla"])
def test_scores_are_the_softmax_over_refreshed_keys_and_what_refreshed_them(any_backend, cell):
    """Keys and values are copied here, and refreshed one after the other."""
    shape, G, D = Shape.parse("T4-B2-C12-R3-HW5x3"), 3, 4
    given = [(x.to(any_backend.device), Attention(*(t.to(any_backend.device) for t in f))) for x, f in layers(shape)]
    w = cell_weights(cell, shape)
    w = w and type(w)(*(t.to(any_backend.device) for t in w))
    how = {"heads": G, "moments": True, "backend": any_backend.name} | ({"cell": cell} if cell else {})
    stage, again, keys, values = None, None, [], []
    for t, (x, filters) in enumerate(given):
        o, stage, moments, scores = dla.base_step(x, stage, filters, w, **how, scores=True)
        plain, again, plain_moments = dla.base_step(x, again, filters, w, **how)
        for ours, theirs in zip((o, moments, stage.keys, stage.scale), (plain, plain_moments, again.keys, again.scale)):
            assert_same_bits(ours, theirs)
        y, q, k = x.mean((2, 3)), filters.q[None, None], filters.k[None, None]
        if cell and t:
            d = [
                [reference.refresh(one[None], stage.state, w, cell=cell)[0] for one in both] for both in (keys, values)
            ]
            torch.testing.assert_close(scores.d, torch.stack([torch.stack(both) for both in d]))
            keys, values = ([one * of for one, of in zip(both, own)] for both, own in zip((keys, values), d))
        else:
            assert scores.d is None
        keys.append(torch.conv1d(y[:, None], k, padding=k.shape[-1] // 2)[:, 0])
        values.append(torch.conv2d(x, filters.v, padding=1, groups=12).mean((2, 3)))
        query = torch.conv1d(y[:, None], q, padding=q.shape[-1] // 2)[:, 0]
        dots = torch.stack([(query * key).view(2, G, D).sum(2) / D**0.5 for key in keys])
        torch.testing.assert_close(scores.shares, dots.exp() / dots.exp().sum(0))
        torch.testing.assert_close(scores.shares.sum(0), torch.ones_like(dots[0]))


def test_scores_are_constants_to_autograd(any_backend):
    inputs = inputs_of(OP, MIDDLE, FEW_CELLS[0], DOUBLE, device=any_backend.device)
    how = {"heads": 1, "cell": FEW_CELLS[0], "backend": any_backend.name}
    grads = []
    for asked in ({}, {"scores": True}):
        x = grown(inputs["x"])
        o, _, _, *scores = dla.base_step(**inputs | {"x": x}, **how, **asked)
        grads.append(torch.autograd.grad(o.square().sum(), x)[0])
    assert not any(t.requires_grad for t in scores[0])
    assert_same_bits(*grads)


def test_errors_say_what_was_expected_and_what_came():
    inputs = inputs_of(OP, Shape.parse("T2-B2-C6-R3-HW2x3"), dla.PAPER_DSU, torch.float32)
    with pytest.raises(ValueError, match=r"x: expected shape .* like stage.values.0., got"):
        dla.base_step(**inputs | {"x": torch.ones(2, 6, 4, 4)}, heads=2)
    with pytest.raises(ValueError, match="heads: expected a divisor of C = 6, got 5"):
        dla.base_step(**inputs, heads=5)
    with pytest.raises(TypeError, match=r"stage: expected .*, got tuple"):
        dla.base_step(**inputs | {"stage": tuple(inputs["stage"])}, heads=2)
    with pytest.raises(ValueError, match=r"weights: expected those of the layers before, .* got None"):
        dla.base_step(**inputs | {"weights": None}, heads=2)
