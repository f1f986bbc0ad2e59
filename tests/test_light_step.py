"""DLA-L and MRLA-L work inside a network: the reference follows its equation, and the kernels follow the reference."""

from itertools import product

import pytest
import torch
from torch.autograd import gradcheck

import dla_kernels as dla
from dla_kernels import reference
from dla_kernels.attention import Attention, filter_width

from .calls import check_parity
from .cases import (
    CELLS,
    DTYPES,
    FEW_CELLS,
    LAYOUT_NAMES,
    MIDDLE,
    SHAPES,
    WIDE,
    Shape,
    cell_name,
    dtype_name,
    inputs_of,
    state_forms,
)
from .interpreter import some
from .stages import cell_weights, check_moments, drop_path, layers, norm
from .test_depthwise import BORDERS
from .tolerances import assert_same_bits

OP = "light_step"
OUTGROWING = Shape.parse("T2-B5-C67-R16-HW65x63")

SIZES = ["1x1", "3x5", "7x7"]
DOUBLE = torch.float64


def neighbours(x, b, c, i, j):
    """Return the 3x3 pixels around one, zero beyond the border."""
    H, W = x.shape[2:]
    inside = [[0 <= i + di < H and 0 <= j + dj < W for dj in (-1, 0, 1)] for di in (-1, 0, 1)]
    return [[x[b, c, i + di - 1, j + dj - 1] if inside[di][dj] else 0.0 for dj in range(3)] for di in range(3)]


def convolved(x, taps):
    out = torch.empty_like(x)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        around = neighbours(x, b, c, i, j)
        out[b, c, i, j] = sum(taps[c, 0, di, dj] * around[di][dj] for di in range(3) for dj in range(3))
    return out


def expected_gate(y, filters, heads):
    """Return sig(q . k / sqrt(D)), one number for each channel."""
    B, C = y.shape
    K, D = len(filters.q), C // heads

    def filtered(taps, b, c):
        return sum(taps[j] * y[b, c + j - K // 2] for j in range(K) if 0 <= c + j - K // 2 < C)

    gate = torch.empty_like(y)
    for b in range(B):
        for g in range(heads):
            head = range(g * D, (g + 1) * D)
            score = sum(filtered(filters.q, b, c) * filtered(filters.k, b, c) for c in head) / D**0.5
            gate[b, head] = torch.sigmoid(score)
    return gate


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("published", [True, False], ids=["published", "paper"])
@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
def test_the_reference_follows_its_equation(cell, published, size):
    shape = Shape.parse(f"T2-B2-C4-R2-HW{size}")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam = cell_weights(cell, shape), torch.randn(4, dtype=DOUBLE)
    e = torch.randn(4, 1, 3, 3, dtype=DOUBLE) if published else None
    options = {"heads": 2, "e": e} | ({"cell": cell} if cell else {})
    o, state, _ = reference.light_step(x, o_prev, filters, lam, w, **options)

    y, refreshed = reference.gap([x, o_prev]), o_prev
    if cell:
        states = reference.scan(y[:1], w, cell=cell)
        torch.testing.assert_close(state, tuple(s[0] for s in states))
        refreshed = o_prev * reference.refresh(y[1:], state, w, cell=cell)[0, :, :, None, None]
    if published:
        refreshed = refreshed + convolved(o_prev, e)
    gate = expected_gate(y[0], filters, 2)[..., None, None]
    torch.testing.assert_close(o, lam[:, None, None] * refreshed + gate * convolved(x, filters.v))


@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_with_an_activation_the_value_is_gelu_of_what_is_filtered(backend_name):
    """gelu(v) = v Phi(v), Phi being the distribution function of a normal variable."""
    shape = Shape.parse("T2-B2-C6-R2-HW4x3")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam, e = cell_weights(dla.PAPER_DSU, shape), torch.randn(6, dtype=DOUBLE), torch.randn(6, 1, 3, 3, dtype=DOUBLE)
    how = {"heads": 2, "e": e, "backend": backend_name}
    o, state, moments = dla.light_step(x, o_prev, filters, lam, w, act="gelu", moments=True, **how)
    without, same_state, _ = dla.light_step(x, o_prev, filters, lam, w, **how)
    gate, v = expected_gate(x.mean((2, 3)), filters, 2)[..., None, None], convolved(x, filters.v)
    torch.testing.assert_close(o, without + gate * (v * torch.special.ndtr(v) - v))
    torch.testing.assert_close(state, same_state)
    check_moments(moments, o)


def test_an_unknown_activation_is_refused():
    shape = Shape.parse("T1-B1-C4-HW2x2")
    ((x, filters),) = layers(shape)
    with pytest.raises(ValueError, match="act: expected None or one of gelu, got 'relu'"):
        dla.light_step(x, None, filters, torch.ones(4, dtype=DOUBLE), heads=2, act="relu")


def test_without_a_previous_layer_the_output_is_attention_alone():
    shape = Shape.parse("T1-B2-C6-HW3x3")
    ((x, filters),) = layers(shape)
    lam = torch.randn(6, dtype=DOUBLE)
    o, state, _ = reference.light_step(x, None, filters, lam, heads=3)
    assert state is None
    torch.testing.assert_close(o, reference.light_step(x, torch.zeros_like(x), filters, lam, heads=3)[0])


def test_the_rescale_and_the_convolution_by_e_are_one_filter_per_sample():
    """The kernels are built on this: x * w + dwconv(x; E) is dwconv(x; E + w * centre)."""
    x, d, e = (torch.randn(s, dtype=DOUBLE) for s in ((2, 4, 5, 3), (2, 4), (4, 1, 3, 3)))
    centre = torch.zeros(3, 3, dtype=DOUBLE)
    centre[1, 1] = 1
    for b in range(2):
        taps = e + d[b, :, None, None, None] * centre
        one = torch.nn.functional.conv2d(x[b : b + 1], taps, padding=1, groups=4)
        torch.testing.assert_close(one, x[b : b + 1] * d[b, :, None, None] + convolved(x[b : b + 1], e))


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_a_sample_is_refreshed_with_its_own_state(cell):
    shape = Shape.parse("T2-B3-C4-R2-HW2x3")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam, order = cell_weights(cell, shape), torch.randn(4, dtype=DOUBLE), [2, 0, 1]
    o, _, _ = reference.light_step(x, o_prev, filters, lam, w, heads=2, cell=cell)
    moved, _, _ = reference.light_step(x[order], o_prev[order], filters, lam, w, heads=2, cell=cell)
    torch.testing.assert_close(moved, o[order])


def test_the_reference_is_differentiable():
    shape = Shape.parse("T2-B2-C4-R2-HW2x3")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam, e = cell_weights(dla.PAPER_DSU, shape), torch.randn(4, dtype=DOUBLE), filters.v.clone()

    def f(x, o_prev, lam, e, q, k, v, *w):
        o, state, _ = reference.light_step(x, o_prev, Attention(q, k, v), lam, dla.Joint(*w), heads=2, e=e)
        return o, *state

    assert gradcheck(f, [t.requires_grad_() for t in (x, o_prev, lam, e, *filters, *w)])


def test_the_width_of_a_filter_is_odd_and_grows_with_the_channels():
    assert [filter_width(C) for C in (1, 16, 64, 128, 512, 2048)] == [1, 3, 3, 5, 5, 7]


# ---- the kernels ----


def of_form(inputs, published=True, first=False, mrla=False):
    """Return the inputs of a layer of the published code or of the paper; of the first of its stage; without a cell."""
    without = {"e": not published, "o_prev": first, "weights": mrla, "state": mrla}
    return {name: None if without.get(name) else value for name, value in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_parity_of_a_step_with_every_cell_from_every_state(backend, cell, dtype):
    for form in (None, *state_forms(cell)):
        inputs = inputs_of(OP, MIDDLE, cell, dtype, form=form, device=backend.device)
        check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=cell, heads=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_parity_at_every_shape(backend, cell, shape, dtype):
    inputs = inputs_of(OP, shape, cell, dtype, device=backend.device)
    check_parity(OP, backend, inputs, shape.B * shape.longest_sum, cell=cell, heads=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    for published in (True, False):
        inputs = inputs_of(OP, MIDDLE, FEW_CELLS[1], dtype, layout=layout, device=backend.device)
        check_parity(OP, backend, of_form(inputs, published), MIDDLE.longest_sum, cell=FEW_CELLS[1], heads=1)


@pytest.mark.parametrize("first", [False, True], ids=["", "first"])
@pytest.mark.parametrize("published", [True, False], ids=["published", "paper"])
@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
def test_parity_with_optional_inputs_left_out(backend, cell, published, first):
    for dtype in (torch.float64, torch.bfloat16):
        inputs = inputs_of(OP, MIDDLE, cell or FEW_CELLS[0], dtype, device=backend.device)
        inputs = of_form(inputs, published, first, cell is None)
        check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=cell or FEW_CELLS[0], heads=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("published", [True, False], ids=["published", "paper"])
@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
def test_parity_with_an_activation(backend, cell, published, dtype):
    for layout, first in (("channels_last", False), ("nchw", True)):
        inputs = inputs_of(OP, MIDDLE, cell or FEW_CELLS[0], dtype, layout=layout, device=backend.device)
        inputs = of_form(inputs, published, first, cell is None)
        check_parity(OP, backend, inputs, MIDDLE.longest_sum, cell=cell or FEW_CELLS[0], heads=1, act="gelu")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("size", BORDERS)
def test_parity_at_every_border(backend, size, layout):
    shape = Shape.parse(f"T2-B2-C18-HW{size}")
    for published in some(backend, (True, False), 1):
        inputs = inputs_of(OP, shape, FEW_CELLS[0], torch.float64, layout=layout, device=backend.device)
        check_parity(OP, backend, of_form(inputs, published), shape.longest_sum, cell=FEW_CELLS[0], heads=2)


@pytest.mark.parametrize(("C", "D"), [(64, 16), (64, 32), (64, 64), (48, 16), (6, 1)])
def test_parity_with_any_number_of_heads(backend, C, D):
    shape = Shape.parse(f"T2-B3-C{C}-HW4x3")
    for dtype in (torch.float64, torch.float32):
        inputs = inputs_of(OP, shape, dla.RELEASED_DSU, dtype, device=backend.device)
        check_parity(OP, backend, inputs, shape.longest_sum, cell=dla.RELEASED_DSU, heads=C // D)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_parity_where_weights_outgrow_the_cache(backend, cell, dtype):
    shape = WIDE[cell.projection]
    inputs = inputs_of(OP, shape, cell, dtype, device=backend.device)
    check_parity(OP, backend, inputs, shape.longest_sum, cell=cell, heads=2)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "mixed"])
def test_parity_where_maps_outgrow_the_cache(backend, layout):
    shape = OUTGROWING
    for dtype in (torch.float32, torch.bfloat16):
        inputs = inputs_of(OP, shape, dla.PAPER_DSU, dtype, layout=layout, device=backend.device)
        check_parity(OP, backend, inputs, shape.B * shape.longest_sum, cell=dla.PAPER_DSU, heads=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    ("shape", "layout"),
    # Of one pixel all layouts are the same.
    [(SHAPES[0], "nchw"), *product((MIDDLE, SHAPES[6], OUTGROWING), ("nchw", "channels_last"))],
    ids=str,
)
def test_moments_are_those_of_the_output(backend, shape, dtype, layout):
    inputs = inputs_of(OP, shape, dla.PAPER_DSU, dtype, layout=layout, device=backend.device)
    o, _, moments = dla.light_step(**inputs, heads=1, moments=True, backend=backend.name)
    assert_same_bits(o, dla.light_step(**inputs, heads=1, backend=backend.name)[0])
    check_moments(moments, o)


@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
def test_a_stage_of_twelve_layers_and_norms_equals_the_reference(backend, cell):
    """Each layer has its shortcut as in the published networks, and gradients are compared too."""
    shape = Shape.parse("T12-B3-C16-R4-HW5x3")
    given, options = layers(shape), {"heads": 2} | ({"cell": cell} if cell else {})
    lam, e = torch.randn(12, 16, dtype=DOUBLE), torch.randn(16, 1, 3, 3, dtype=DOUBLE)
    w, keep, norms = cell_weights(cell, shape), drop_path(3, DOUBLE), [norm(16, DOUBLE) for _ in given]

    def run(f, backend, *leaves):
        e, lam, *leaves = leaves
        x, state, out = given[0][0].to(backend.device), None, []
        for t, (gamma, beta, _) in enumerate(norms):
            q, k, v = leaves[3 * t : 3 * t + 3]
            weights = type(w)(*leaves[36:]) if cell else None
            named = {} if f is reference else {"backend": backend.name}
            o, state, moments = f.light_step(
                x, x * 0.9, Attention(q, k, v), lam[t], weights, e=e, state=state, moments=True, **options, **named
            )
            norm_of = [n.to(backend.device) for n in (gamma, beta)]
            x = f.norm_add(x, o, *norm_of, None, moments=moments, keep=keep.to(backend.device), **named)
            out.append(x)
        return torch.stack(out)

    leaves = [x.to(backend.device).requires_grad_() for x in (e, lam, *(t for _, f in given for t in f), *(w or ()))]
    ours, theirs = (run(f, backend, *leaves) for f in (dla, reference))
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(x.square().sum(), leaves) for x in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_a_layer_is_one_framework_call_in_inference(backend):
    """The call allocates its memory itself; the norm and its shortcut are one more call."""
    shape = Shape.parse("T2-B2-C64-R4-HW8x8")
    inputs = inputs_of(OP, shape, dla.RELEASED_DSU, torch.float32, form="c", device=backend.device)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        dla.light_step(**inputs, cell=dla.RELEASED_DSU, heads=2, backend=backend.name)
    on_cpu = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CPU]
    calls = [event.name for event in on_cpu if event.cpu_parent is None and "::" in event.name]
    assert [name.partition("::")[2] for name in calls] == [OP]


@pytest.mark.parametrize("first", [False, True], ids=["", "first"])
@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
def test_scores_are_the_gate_and_what_refreshed_the_layer_before(any_backend, cell, first):
    shape = Shape.parse("T2-B3-C18-R5-HW5x3")
    inputs = inputs_of(OP, shape, cell or FEW_CELLS[0], DOUBLE, device=any_backend.device)
    inputs = of_form(inputs, first=first, mrla=cell is None)
    how = {"heads": 3, "cell": cell or FEW_CELLS[0], "moments": True, "backend": any_backend.name}
    o, state, moments, scores = dla.light_step(**inputs, **how, scores=True)
    plain = dla.light_step(**inputs, **how)
    for ours, theirs in zip((o, *(state or ()), moments), (plain[0], *(plain[1] or ()), plain[2])):
        assert_same_bits(ours, theirs)
    y = inputs["x"].mean((2, 3)).cpu()
    filters = Attention(*(taps.cpu() for taps in inputs["attention"]))
    torch.testing.assert_close(scores.shares.cpu(), expected_gate(y, filters, 3)[:, ::6])  # one of each head
    if first or cell is None:
        assert scores.d is None
    else:
        d = reference.refresh(inputs["o_prev"].mean((2, 3))[None], state, inputs["weights"], cell=cell)[0]
        torch.testing.assert_close(scores.d, d)


@pytest.mark.parametrize("act", [None, "gelu"])
@pytest.mark.parametrize("cell", [dla.RELEASED_DSU, dla.Cell("lstm"), None], ids=["dsu", "lstm", "mrla"])
def test_an_output_is_the_sum_of_values_by_scores_unrolled(any_backend, cell, act):
    """Each layer multiplies what the one before had of every value by lam and d; without E there is nothing else."""
    T, shape = 4, Shape.parse("T4-B2-C12-R3-HW5x3")
    given, w = layers(shape), cell_weights(cell, shape)
    lam = torch.randn(T, 12, dtype=DOUBLE)
    there = any_backend.device
    w = w and type(w)(*(t.to(there) for t in w))
    how = {"heads": 3, "act": act, "scores": True, "backend": any_backend.name} | ({"cell": cell} if cell else {})
    o, state, shares = None, None, []  # shares: of every layer so far, [B, C] each
    for (x, filters), lam_t in zip(given, lam.to(there)):
        attention = Attention(*(t.to(there) for t in filters))
        o, state, _, scores = dla.light_step(x.to(there), o, attention, lam_t, w, state=state, **how)
        kept = lam_t if scores.d is None else lam_t * scores.d
        shares = [kept * share for share in shares] + [scores.shares.repeat_interleave(4, 1)]
    values = [torch.conv2d(x, filters.v, padding=1, groups=12) for x, filters in given]
    values = values if act is None else [torch.nn.functional.gelu(value) for value in values]
    expected = sum(share.cpu()[..., None, None] * value for share, value in zip(shares, values))
    torch.testing.assert_close(o.cpu(), expected)


def test_scores_are_constants_to_autograd(any_backend):
    inputs = inputs_of(OP, MIDDLE, FEW_CELLS[0], DOUBLE, device=any_backend.device)
    how = {"heads": 1, "cell": FEW_CELLS[0], "backend": any_backend.name}
    grads = []
    for asked in ({}, {"scores": True}):
        x = inputs["x"].clone().requires_grad_()
        lam = inputs["lam"].clone().requires_grad_()
        o, _, _, *scores = dla.light_step(**inputs | {"x": x, "lam": lam}, **how, **asked)
        grads.append(torch.autograd.grad(o.square().sum(), (x, lam)))
    assert not any(t.requires_grad for t in scores[0])
    for ours, theirs in zip(*grads):
        assert_same_bits(ours, theirs)


WRONG = {
    "no filters": (lambda i: i | {"attention": tuple(i["attention"])}, TypeError, "attention: expected .*got tuple"),
    "even filter": (
        lambda i: i | {"attention": i["attention"]._replace(q=torch.ones(4))},
        ValueError,
        "attention.q: .*odd",
    ),
    "v": (
        lambda i: i | {"attention": i["attention"]._replace(v=torch.ones(6, 3, 3))},
        ValueError,
        "attention.v: expected .*got",
    ),
    "heads": (lambda i: i | {"heads": 4}, ValueError, "heads: expected a divisor of C = 6, got 4"),
    "o_prev": (lambda i: i | {"o_prev": torch.ones(2, 6, 3, 3)}, ValueError, "o_prev: expected shape .* like x, got"),
    "dtype": (lambda i: i | {"o_prev": i["o_prev"].bfloat16()}, TypeError, "o_prev: expected dtype .* like x, got"),
    "lam": (lambda i: i | {"lam": torch.ones(5)}, ValueError, r"lam: expected \[6\], got \[5\]"),
    "e": (lambda i: i | {"e": torch.ones(6, 6, 3, 3)}, ValueError, r"e: expected \[6, 1, 3, 3\], got"),
    "a state without weights": (
        lambda i: i | {"weights": None},
        ValueError,
        "state: expected None without weights, got",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_say_what_was_expected_and_what_came(wrong):
    change, error, words = WRONG[wrong]
    inputs = inputs_of(OP, Shape.parse("T2-B2-C6-R3-HW2x3"), dla.PAPER_DSU, torch.float32) | {"heads": 2}
    with pytest.raises(error, match=words):
        dla.light_step(**change(inputs))
