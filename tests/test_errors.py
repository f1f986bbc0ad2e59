"""Wrong arguments raise ValueError or TypeError that name the argument, what was expected and what came."""

import re
import warnings

import pytest
import torch

import dla_kernels as dla
from dla_kernels import backends

from .conftest import COMPILED

B, C, R, T = 2, 6, 3, 2


def maps(**changes):
    options = {"dtype": torch.float32, "device": "cpu"} | changes
    return [torch.ones(B, C, 3, 4, **options), torch.ones(B, C, 2, 2, **options)]


def joint(**changes):
    shapes = {"w1": (R, 2 * C), "w2": (3 * C, R), "b2": (3 * C,)}
    return dla.Joint(**({name: torch.ones(s) for name, s in shapes.items()} | changes))


def split(**changes):
    half = {"w1": (R, C), "b1": (R,), "w2": (3 * C, R), "b2": (3 * C,)}
    shapes = {name + side: s for side in "yh" for name, s in half.items()}
    return dla.Split(**({name: torch.ones(s) for name, s in shapes.items()} | changes))


def dense(NG=4, **changes):
    shapes = {"wy": (NG * C, C), "by": (NG * C,), "wh": (NG * C, C), "bh": (NG * C,)}
    return dla.Dense(**({name: torch.ones(s) for name, s in shapes.items()} | changes))


Y = torch.ones(T, B, C)
STATE = torch.ones(B, C)
DSU = dla.PAPER_DSU.rule

# A call, and what its error says: type, argument, expected, came.
WRONG = {
    "empty list": (lambda: dla.gap([]), ValueError, "xs", "at least one map", "empty list"),
    "tensor for a list": (lambda: dla.gap(torch.ones(2, B, C, 3, 3)), TypeError, "xs", "list of maps", "Tensor"),
    "not a tensor": (lambda: dla.gap([*maps(), 3]), TypeError, "xs[2]", "tensor", "int"),
    "integers": (lambda: dla.gap(maps(dtype=torch.int32)), TypeError, "xs[0]", "float32", "torch.int32"),
    "complex": (lambda: dla.gap(maps(dtype=torch.complex64)), TypeError, "xs[0]", "float32", "torch.complex64"),
    "sparse": (lambda: dla.scan(Y.to_sparse(), joint()), TypeError, "y", "dense", "torch.sparse_coo"),
    "sparse map": (
        lambda: dla.gap([maps()[0], torch.ones(B, C, 3, 4).to_sparse()]),
        TypeError,
        "xs[1]",
        "dense",
        "torch.sparse_coo",
    ),
    "mixed dtypes": (
        lambda: dla.rescale([maps()[0], maps(dtype=torch.float64)[1]], Y),
        TypeError,
        "xs[1]",
        "torch.float32",
        "torch.float64",
    ),
    "mixed devices": (lambda: dla.gap([maps()[0], maps(device="meta")[1]]), ValueError, "xs[1]", "cpu", "meta"),
    "other B": (lambda: dla.gap([maps()[0], torch.ones(B + 1, C, 2, 2)]), ValueError, "xs[1]", "B=2", "[3, 6, 2, 2]"),
    "other C": (
        lambda: dla.layer_update([maps()[0], torch.ones(B, C + 1, 2, 2)], joint()),
        ValueError,
        "xs[1]",
        "C=6",
        "[2, 7, 2, 2]",
    ),
    "other C, that of the first in H": (
        lambda: dla.gap([maps()[0], torch.ones(B, C + 1, C, 2)]),
        ValueError,
        "xs[1]",
        "C=6",
        "[2, 7, 6, 2]",
    ),
    "three dimensions": (lambda: dla.gap([torch.ones(B, C, 3)]), ValueError, "xs[0]", "[B, C, H, W]", "[2, 6, 3]"),
    "no pixels": (lambda: dla.gap([torch.ones(B, C, 0, 3)]), ValueError, "xs[0]", "at least 1", "[2, 6, 0, 3]"),
    "no channels": (lambda: dla.gap([torch.ones(B, 0, 2, 3)]), ValueError, "xs[0]", "at least 1", "[2, 0, 2, 3]"),
    "y of two dimensions": (lambda: dla.scan(Y[0], joint()), ValueError, "y", "[T, B, C]", "[2, 6]"),
    "no layers": (lambda: dla.scan(Y[:0], joint()), ValueError, "y", "at least 1", "[0, 2, 6]"),
    "integer y": (lambda: dla.scan(Y.int(), joint()), TypeError, "y", "float32", "torch.int32"),
    "not a cell": (lambda: dla.scan(Y, joint(), cell=3), TypeError, "cell", "Cell", "int"),
    "weights of another projection": (
        lambda: dla.scan(Y, split(), cell=dla.PAPER_DSU),
        TypeError,
        "weights",
        "Joint",
        "Split",
    ),
    "weights as a list": (lambda: dla.scan(Y, list(joint())), TypeError, "weights", "Joint", "list"),
    "weights for fewer gates": (
        lambda: dla.scan(Y, dense(NG=3), cell=dla.Cell("lstm")),
        ValueError,
        "weights.wy",
        "[24, 6]",
        "[18, 6]",
    ),
    "empty bottleneck": (
        lambda: dla.scan(Y, joint(w1=torch.ones(0, 12))),
        ValueError,
        "weights.w1",
        "one row",
        "[0, 12]",
    ),
    "float64 weights": (
        lambda: dla.layer_update(maps(), joint(w1=torch.ones(R, 2 * C, dtype=torch.float64))),
        TypeError,
        "weights.w1",
        "float32 or a 16-bit float",
        "torch.float64",
    ),
    "float32 weights beside float64": (
        lambda: dla.layer_update(maps(dtype=torch.float64), joint()),
        TypeError,
        "weights.w1",
        "float64",
        "torch.float32",
    ),
    "weights of mixed dtypes": (
        lambda: dla.scan(Y, joint(b2=torch.ones(3 * C, dtype=torch.bfloat16))),
        TypeError,
        "weights.b2",
        "torch.float32",
        "torch.bfloat16",
    ),
    "weights elsewhere": (
        lambda: dla.scan(Y, joint(w2=torch.ones(3 * C, R, device="meta"))),
        ValueError,
        "weights.w2",
        "cpu",
        "meta",
    ),
    "state of an lstm": (
        lambda: dla.scan(Y, dense(), cell=dla.Cell("lstm"), state=(STATE,)),
        ValueError,
        "state",
        "(h, c)",
        "1 tensors",
    ),
    "state of an rnn": (
        lambda: dla.scan(Y, dense(NG=1), cell=dla.Cell("rnn"), state=(STATE, STATE)),
        ValueError,
        "state",
        "(h,)",
        "2 tensors",
    ),
    "a tensor for a state": (lambda: dla.scan(Y, joint(), state=STATE), ValueError, "state", "(c,)", "Tensor"),
    "no state to refresh from": (lambda: dla.refresh(Y, None, joint()), ValueError, "state", "(c,)", "NoneType"),
    "state of another batch": (
        lambda: dla.scan(Y, joint(), state=(torch.ones(B + 1, C),)),
        ValueError,
        "state[0]",
        "[2, 6]",
        "[3, 6]",
    ),
    "d of another T": (lambda: dla.rescale(maps(), Y[:1]), ValueError, "d", "[2, 2, 6]", "[1, 2, 6]"),
    "float64 d": (lambda: dla.rescale(maps(), Y.double()), TypeError, "d", "float32", "torch.float64"),
    "in place with gradients": (
        lambda: dla.layer_update(maps(), joint(), inplace=True),
        ValueError,
        "inplace",
        "no_grad",
        "gradients enabled",
    ),
    "unknown kind": (lambda: dla.Cell("gru"), ValueError, "Cell.kind", "rnn, lstm, dia, dsu", "'gru'"),
    "unknown act": (lambda: dla.Cell(act="gelu"), ValueError, "Cell.act", "sigmoid, tanh", "'gelu'"),
    "unknown output": (lambda: dla.Cell(output="h"), ValueError, "Cell.output", "context, sigmoid", "'h'"),
    "unknown projection": (lambda: dla.Cell(projection="full"), ValueError, "Cell.projection", "joint", "'full'"),
    "act of an lstm": (lambda: dla.Cell("lstm", act="tanh"), ValueError, "Cell", "dsu", "'tanh'"),
    "unknown backend": (lambda: dla.gap(maps(), backend="tpu"), ValueError, "backend", "reference, cpu", "'tpu'"),
}
for weights, cell in ((joint, dla.PAPER_DSU), (split, dla.RELEASED_DSU), (dense, dla.Cell("lstm"))):
    for field in weights()._fields[1:]:
        wrong = weights(**{field: torch.ones(5, 5)})
        WRONG[f"shape of {weights.__name__} {field}"] = (
            lambda wrong=wrong, cell=cell: dla.layer_update(maps(), wrong, cell=cell),
            ValueError,
            f"weights.{field}",
            "expected [",
            "[5, 5]",
        )


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_say_what_was_expected_and_what_came(wrong):
    call, error, argument, expected, came = WRONG[wrong]
    with pytest.raises(error, match=re.escape(argument)) as caught:
        call()
    said = str(caught.value)
    assert said.startswith(argument)
    before, _, after = said.partition("got ")
    assert expected in before + after
    assert came in after


@pytest.mark.parametrize("layout", [lambda x: x[:1].expand(B, -1, -1, -1), lambda x: x.mT, lambda x: x[:, :, :, ::2]])
def test_in_place_refuses_maps_it_cannot_write(layout):
    xs = [layout(torch.ones(B, C, 4, 6))]
    with torch.no_grad(), pytest.raises(ValueError, match=r"xs\[0\]: inplace expected .* got "):
        dla.rescale(xs, Y[:1], inplace=True)


def test_a_backend_for_another_device_is_refused(backend):
    with pytest.raises(ValueError, match=f"backend: '{backend.name}' serves tensors on {backend.device}, got .* meta"):
        dla.gap(maps(device="meta"), backend=backend.name)


@pytest.mark.parametrize("name", [b.name for b in backends.BACKENDS.values() if not b.available])
def test_an_unavailable_backend_says_why(name):
    with pytest.raises(ValueError, match=f"backend: '{name}' is not available here: .+"):
        dla.gap(maps(), backend=name)


def test_without_a_compiled_backend_the_reference_serves_with_one_warning(monkeypatch):
    cpu = backends.BACKENDS["cpu"]
    monkeypatch.setattr(cpu, "ops", None)
    monkeypatch.setattr(cpu, "reason", "no compiler; install one")
    monkeypatch.setattr(cpu, "_tried", True)
    monkeypatch.setattr(backends, "_warned", set())
    with pytest.warns(RuntimeWarning, match="no compiler; install one") as seen:
        first = dla.gap(maps())
    assert len(seen) == 1
    assert seen[0].filename == __file__  # it points at the caller
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = dla.gap(maps())
    torch.testing.assert_close(first, second)


@pytest.mark.filterwarnings("ignore:dla_kernels. no compiled backend for meta")
def test_meta_tensors_tell_the_shapes_of_results():
    weights = dla.Joint(*(w.to("meta") for w in joint()))
    out, (c,) = dla.layer_update(maps(device="meta"), weights)
    assert [x.shape for x in out] == [(B, C, 3, 4), (B, C, 2, 2)]
    assert (c.shape, c.device.type) == ((T, B, C), "meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_empty_batch_gives_empty_results_and_zero_weight_gradients(any_backend, dtype):
    xs = [torch.ones(0, C, 3, 4, dtype=dtype, requires_grad=True) for _ in range(T)]
    weights = joint()._make(w.to(dtype).requires_grad_() for w in joint())
    out, (c,) = dla.layer_update(xs, weights, backend=any_backend.name)
    assert [x.shape for x in out] == [(0, C, 3, 4)] * T
    assert c.shape == (T, 0, C)
    grads = torch.autograd.grad([*out, c], [*xs, *weights], [torch.ones_like(x) for x in [*out, c]])
    assert [g.shape for g in grads] == [x.shape for x in [*xs, *weights]]
    assert all(g.eq(0).all() for g in grads)
    assert dla.gap(xs, backend=any_backend.name).shape == (T, 0, C)
    assert dla.refresh(c, (c[0],), weights, backend=any_backend.name).shape == (T, 0, C)


# A call, and what its RuntimeError says.
BAD_OPERATOR_CALLS = {
    "empty list": (lambda ops: ops.rescale([], Y), "xs: expected at least one map, got an empty list"),
    "map of three dimensions": (lambda ops: ops.gap([torch.ones(2, 3, 4)]), "xs: expected maps .*, got 3 dimensions"),
    "integer maps": (lambda ops: ops.gap(maps(dtype=torch.int32)), "xs: expected fp32, .* or fp16, got .*[Ii]nt"),
    "unknown rule": (lambda ops: ops.scan(Y, list(joint()), [], "gru"), "rule: expected one of rnn, .*, got 'gru'"),
    "two weights": (lambda ops: ops.scan(Y, list(joint())[:2], [], DSU), "weights: expected 3 .* tensors, got 2"),
    "weights of another shape": (
        lambda ops: ops.scan(Y, list(joint(w1=torch.ones(R, C))), [], DSU),
        "weights: expected size 12 in dimension 1, got 6",
    ),
    "no state": (lambda ops: ops.refresh(Y, [], list(joint()), DSU), "state: expected 2 .*, got 0"),
    "state of one tensor": (lambda ops: ops.refresh(Y, [STATE], list(dense()), "lstm"), "state: expected 2 .*, got 1"),
    "half y": (lambda ops: ops.scan(Y.half(), list(joint()), [], DSU), "y: expected fp32 or fp64, got .*(Half|16)"),
    "d of another shape": (lambda ops: ops.rescale(maps(), Y[:, :1]), "d: expected size 2 in dimension 1, got 1"),
    "y of another shape": (
        lambda ops: ops.layer_update_bwd(maps(), [], maps(), list(joint()), [], Y[:1], [Y], DSU),
        "y: expected size 2 in dimension 0, got 1",
    ),
    "gradients of the gates of another shape": (
        lambda ops: ops.refresh_bwd(Y[:1], Y, [STATE, STATE], list(joint()), DSU),
        "dd: expected size 2 in dimension 0, got 1",
    ),
    "states of another shape": (
        lambda ops: ops.scan_bwd([Y], Y, list(joint()), [], [Y[:1]], DSU),
        "states: expected size 2 in dimension 0, got 1",
    ),
    "no states": (
        lambda ops: ops.layer_update_bwd(maps(), [], maps(), list(joint()), [], Y, [], DSU),
        "states: expected 1 .*, got 0",
    ),
    "two factors of every sample": (
        lambda ops: ops.norm_add(*maps()[:1] * 2, Y[:, 0], Y[0, 0], Y[0, 0], [Y[0, :, 0]] * 2, 0.1, True),
        "keep: expected one tensor or none, got 2",
    ),
    "in place, maps that have to be copied": (
        lambda ops: ops.rescale_([x.mT for x in maps()], Y),
        "xs: in place, expected maps that are NCHW or channels_last in memory",
    ),
    "in place, states that have to be copied": (
        lambda ops: ops.layer_update_(maps(), [torch.ones(C, B, T).permute(2, 1, 0)], list(joint()), [], DSU),
        "states: expected",
    ),
    "gradients of another shape": (lambda ops: ops.rescale_bwd(maps()[:1], maps(), Y), "dout: expected 2 .*, got 1"),
}


@pytest.mark.parametrize("bad", BAD_OPERATOR_CALLS)
def test_operators_called_directly_refuse_wrong_arguments(bad):
    call, words = BAD_OPERATOR_CALLS[bad]
    for name in dict.fromkeys(served.name for served in COMPILED):
        try:
            call(backends.BACKENDS[name].ops)
        except RuntimeError as error:
            assert re.search(words, str(error)), name
        else:
            pytest.fail(f"{name} takes it")


@pytest.mark.parametrize("heads", [0, -1, 2.0, 4])
def test_heads_are_a_whole_divisor_of_the_channels(heads):
    taps = torch.ones(3)
    with pytest.raises(ValueError, match=f"heads: expected a divisor of C = 6, got {heads}"):
        dla.attend(torch.ones(2, 6), taps, taps, heads=heads)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 0, 3)])
def test_a_map_has_four_axes_with_something_along_each(shape):
    with pytest.raises(ValueError, match=r"x: expected a map \[B, C, H, W\] with C, H and W of at least 1"):
        dla.depthwise(torch.ones(shape), torch.ones(shape[1], 1, 3, 3))
