"""Over random shapes results have parity with the reference, and identities hold whatever the numbers are."""

import inspect

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dla_kernels as dla

from .calls import check_parity, mapped, named, outcome
from .cases import (
    CELLS,
    DENSE_LAYOUTS,
    DTYPES,
    LAYOUT_NAMES,
    OPS,
    OPS_WITH_CELL,
    SHAPES,
    Shape,
    inputs_of,
    is_shared,
    laid_out_again,
    lay_out,
    options_of,
    state_forms,
)
from .interpreter import interpreted
from .tolerances import assert_equal_to_rounding, assert_same_bits

# The same examples in every run; derandomize also keeps torch's seed meaningful.
settings.register_profile("dla", deadline=None, derandomize=True)
settings.load_profile("dla")

SIDES = st.one_of(st.integers(1, 9), st.sampled_from([16, 31, 65]))
# Most interesting widths lie beside a multiple of a vector's.
CHANNELS = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 47, 64, 65, 129]))


@st.composite
def shapes(draw, backend):
    if interpreted(backend):
        return draw(st.sampled_from(SHAPES[1:4]))
    T = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=T))
    return Shape(T, draw(st.integers(1, 10)), draw(CHANNELS), draw(st.integers(1, 40)), tuple(sizes))


@st.composite
def calls(draw, op, backend):
    """Draw a shape, a cell, and how their inputs are made."""
    shape, cell = draw(shapes(backend)), draw(st.sampled_from(CELLS))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUT_NAMES))
    weight_dtypes = [dtype] if dtype == torch.float64 else [dtype, torch.float32]
    choices = {"dtype": dtype, "layout": layout, "weight_dtype": draw(st.sampled_from(weight_dtypes))}
    if op in OPS_WITH_CELL:
        forms = state_forms(cell) if op == "refresh" else (None, *state_forms(cell))
        choices["form"] = draw(st.sampled_from(forms))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return shape, cell, choices | {"device": backend.device}


def over_examples(test):
    """Return a test that calls ``test(backend, ..., data=...)`` for each example; for a few in the interpreter."""

    def over_them(backend, **parameters):
        @settings(max_examples=2 if interpreted(backend) else 20)
        @given(data=st.data())
        def one(data):
            test(backend=backend, data=data, **parameters)

        one()

    signature = inspect.signature(test)
    over_them.__name__ = test.__name__
    over_them.__signature__ = signature.replace(
        parameters=[p for p in signature.parameters.values() if p.name != "data"]
    )
    return over_them


def same(ours, theirs):
    for (name, x), (_, y) in zip(named("", ours), named("", theirs)):
        assert_same_bits(x, y, name)


@pytest.mark.parametrize("op", OPS)
@over_examples
def test_parity_at_random_shapes(backend, op, data):
    shape, cell, choices = data.draw(calls(op, backend))
    inputs = inputs_of(op, shape, cell, **choices)
    check_parity(op, backend, inputs, shape.longest_sum, **options_of(op, cell))


@over_examples
def test_a_rescale_by_one_changes_nothing(backend, data):
    shape, _, choices = data.draw(calls("rescale", backend))
    xs, d = inputs_of("rescale", shape, None, **choices).values()
    same(dla.rescale(xs, torch.ones_like(d), backend=backend.name), xs)


@over_examples
def test_a_rescale_by_a_power_of_two_is_undone_by_its_inverse(backend, data):
    shape, _, choices = data.draw(calls("rescale", backend))
    exponent = data.draw(st.integers(-3, 3))
    xs, d = inputs_of("rescale", shape, None, **choices).values()
    d = torch.full_like(d, 2.0**exponent)
    # Subnormal halves would lose bits on the way.
    xs = [torch.where(x.abs() < 2.0**-6, 1.0, x).to(x.dtype) for x in xs]
    same(dla.rescale(dla.rescale(xs, d, backend=backend.name), 1 / d, backend=backend.name), xs)


@over_examples
def test_the_mean_of_a_constant_map_is_the_constant(backend, data):
    """These values and their sums are exact, so only the division by HW may round."""
    shape, _, choices = data.draw(calls("gap", backend))
    value = data.draw(st.sampled_from([0.0, 1.0, -3.0, 0.375, -1.75]))
    xs = inputs_of("gap", shape, None, **choices)["xs"]
    xs = lay_out([torch.full_like(x, value) for x in xs], choices["layout"])
    y = dla.gap(xs, backend=backend.name)
    eps = torch.finfo(y.dtype).eps
    torch.testing.assert_close(y, torch.full_like(y, value), rtol=eps, atol=0)


@pytest.mark.parametrize("op", OPS)
@over_examples
def test_permuting_the_batch_permutes_the_result(backend, op, data):
    shape, cell, choices = data.draw(calls(op, backend))
    inputs = inputs_of(op, shape, cell, **choices)
    order = torch.tensor(data.draw(st.permutations(range(shape.B))), device=backend.device)
    batch_axis = {4: 0, 3: 1, 2: 0}  # maps, rows [T, B, C], states

    def permuted(x):
        return x.index_select(batch_axis[x.dim()], order)

    moved = {name: value if is_shared(name) else mapped(permuted, value) for name, value in inputs.items()}
    moved = laid_out_again(moved, choices["layout"])
    options = options_of(op, cell) | {"backend": backend.name}
    expected = outcome(getattr(dla, op), inputs, **options)
    for name, result in outcome(getattr(dla, op), moved, **options).items():
        assert_same_bits(result, permuted(expected[name]), name)


@over_examples
def test_a_scan_in_two_pieces_is_one_scan(backend, data):
    shape, cell, choices = data.draw(calls("scan", backend))
    assume(shape.T > 1)
    plan_knows_T = backend.name == "cuda"  # which says what lies in shared memory, and that the order of sums
    if plan_knows_T:
        choices |= {"dtype": torch.float64, "weight_dtype": torch.float64}
    y, weights, state = inputs_of("scan", shape, cell, **choices).values()
    options = {"cell": cell, "backend": backend.name}
    whole = dla.scan(y, weights, state=state, **options)
    cut = data.draw(st.integers(1, shape.T - 1))
    head = dla.scan(y[:cut], weights, state=state, **options)
    tail = dla.scan(y[cut:], weights, state=tuple(s[-1] for s in head), **options)
    for ours, parts in zip(whole, zip(head, tail)):
        if plan_knows_T:
            assert_equal_to_rounding([ours], [torch.cat(parts)])
        else:
            assert_same_bits(ours, torch.cat(parts))


@over_examples
def test_layouts_agree_to_rounding(backend, data):
    """Layouts differ in how the pooling sum is folded and in nothing else."""
    shape, cell, choices = data.draw(calls("layer_update", backend))
    layout = data.draw(st.sampled_from(list(DENSE_LAYOUTS)))
    choices["layout"] = "nchw"
    inputs = inputs_of("layer_update", shape, cell, **choices)
    elsewhere = inputs | {"xs": lay_out(inputs["xs"], layout)}
    options = {"cell": cell, "backend": backend.name}
    eps = torch.finfo(inputs["xs"][0].dtype).eps
    tolerance = {"rtol": 64 * eps, "atol": 64 * eps}
    torch.testing.assert_close(
        dla.layer_update(**elsewhere, **options), dla.layer_update(**inputs, **options), **tolerance
    )
