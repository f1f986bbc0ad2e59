"""``norm_add`` is normalisation, relu, drop path and the sum with the shortcut, as one pass."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import dla_kernels as dla

from .calls import check_parity, cotangents_for, outcome
from .cases import DTYPES, LAYOUT_NAMES, MIDDLE, SHAPES, Shape, dtype_name, maps
from .interpreter import interpreted
from .stages import drop_path, norm
from .tolerances import assert_same_bits

FORMS = [(relu, keep, training) for relu in (False, True) for keep in (False, True) for training in (False, True)]
NAMED = ["-".join(n for n, on in zip(("relu", "keep", "training"), form) if on) or "plain" for form in FORMS]


def case(shape, dtype, form, layout="nchw", device="cpu"):
    """Return what is differentiated of ``norm_add``, and the rest of its inputs."""
    relu, keep, training = form
    x, o = maps(Shape(2, shape.B, shape.C, shape.R, shape.sizes[:1]), dtype, layout, device)
    gamma, beta, running = norm(shape.C, dtype, device)
    options = {"relu": relu, "running": None if training else running}
    if keep:
        options["keep"] = drop_path(shape.B, dtype, device)
    if training:
        options["moments"] = dla.reference.heads.moments_of(o)
    return {"x": x, "o": o, "gamma": gamma, "beta": beta}, options


def check(backend, shape, dtype, form, layout="nchw"):
    if form[2] and shape.B * shape.sizes[0][0] * shape.sizes[0][1] == 1:
        return  # one number has no variance: torch refuses
    inputs, options = case(shape, dtype, form, layout, backend.device)
    check_parity("norm_add", backend, inputs, shape.B * shape.longest_sum, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("form", FORMS, ids=NAMED)
def test_parity_at_every_shape(backend, form, dtype):
    for shape in SHAPES:
        check(backend, shape, dtype, form)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_parity_in_every_layout(backend, layout, dtype):
    for form in (FORMS[-1], FORMS[0]):
        check(backend, MIDDLE, dtype, form, layout)


def test_parity_where_threads_share_the_channels_of_a_sample(backend, set_threads):
    set_threads(2)
    check(backend, Shape.parse("T2-B1-C130-R1-HW4x3"), torch.float32, FORMS[-1])


@pytest.mark.parametrize("form", FORMS, ids=NAMED)
def test_derivatives_match_finite_differences(backend, form):
    shape = Shape.parse("T1-B2-C2-HW1x2" if interpreted(backend) else "T1-B2-C3-HW2x3")
    inputs, options = case(shape, torch.float64, form, device=backend.device)

    def f(x, o, gamma, beta):
        if form[2]:
            options["moments"] = dla.reference.heads.moments_of(o)
        return dla.norm_add(x, o, gamma, beta, **options, backend=backend.name)

    leaves = [x.requires_grad_() for x in inputs.values()]
    assert gradcheck(f, leaves)
    assert gradgradcheck(f, leaves)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_running_statistics_move_as_those_of_batch_norm(any_backend, momentum):
    (x, o), C = maps(Shape.parse("T2-B3-C5-R1-HW4x3"), torch.float32, device=any_backend.device), 5
    theirs = torch.nn.BatchNorm2d(C, momentum=momentum).to(any_backend.device)
    mean, var = theirs.running_mean.clone(), theirs.running_var.clone()
    for _ in range(3):
        o = o * 1.5 + 1
        expected = x + theirs(o)
        moments = dla.reference.heads.moments_of(o)
        with torch.no_grad():
            got = dla.norm_add(
                x,
                o,
                theirs.weight,
                theirs.bias,
                (mean, var),
                moments=moments,
                momentum=momentum,
                backend=any_backend.name,
            )
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close((mean, var), (theirs.running_mean, theirs.running_var))
    expected = x + theirs.eval()(o)
    torch.testing.assert_close(
        dla.norm_add(x, o, theirs.weight, theirs.bias, (mean, var), backend=any_backend.name), expected
    )


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_results_have_the_same_bits_from_run_to_run_and_in_any_batch(backend, layout):
    form = (True, True, False)
    inputs, options = case(Shape.parse("T2-B9-C65-R1-HW8x8"), torch.float32, form, layout, backend.device)
    run = partial(dla.norm_add, backend=backend.name)
    cotangents = cotangents_for("norm_add", inputs, **options)
    whole = outcome(run, inputs, cotangents, **options)
    for name, again in outcome(run, inputs, cotangents, **options).items():
        assert_same_bits(again, whole[name], name)
    some = {n: t[2:5] if t.dim() == 4 else t for n, t in inputs.items()}
    alone = outcome(run, some, {n: t[2:5] for n, t in cotangents.items()}, **options | {"keep": options["keep"][2:5]})
    for name in ("out", "d x", "d o"):
        assert_same_bits(alone[name], whole[name][2:5], name)


def test_an_empty_batch_moves_no_statistics_and_has_gradients_of_zero(any_backend):
    x = torch.ones(0, 3, 4, 4, device=any_backend.device)
    gamma, beta, running = norm(3, torch.float32, any_backend.device)
    before = [r.clone() for r in running]
    o, moments = dla.mix([x], torch.ones(1, 0, 3, device=any_backend.device), moments=True, backend=any_backend.name)
    gamma, beta = gamma.requires_grad_(), beta.requires_grad_()
    out = dla.norm_add(x, o, gamma, beta, running, moments=moments, relu=True, backend=any_backend.name)
    assert out.shape == x.shape
    assert all(g.eq(0).all() for g in torch.autograd.grad(out.sum(), [gamma, beta]))
    assert all(map(torch.equal, running, before))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_norm_add_compiles_as_one_graph_and_still_moves_the_running_statistics(backend, training):
    inputs, options = case(MIDDLE, torch.float32, (True, True, training), device=backend.device)
    *_, given = norm(MIDDLE.C, torch.float32, backend.device)
    torch.compiler.reset()
    results = []
    for f in (torch.compile(dla.norm_add, fullgraph=True, backend="aot_eager"), dla.norm_add):
        running = tuple(r.clone() for r in given)
        outs = [f(**inputs, **options | {"running": running}, backend=backend.name) for _ in range(2)]
        results.append([*outs, *running])
    for ours, theirs in zip(*results):
        assert_same_bits(ours, theirs)


def test_errors_say_what_was_expected_and_what_came():
    x, weight = torch.ones(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(ValueError, match=r"moments: expected .*, got neither"):
        dla.norm_add(x, x, weight, weight, None)
    with pytest.raises(ValueError, match=r"keep: expected \[2\], got \[3\]"):
        dla.norm_add(x, x, weight, weight, (weight, weight), keep=weight)
    with pytest.raises(ValueError, match=r"running: expected \(mean, variance\) or None, got 1 tensors"):
        dla.norm_add(x, x, weight, weight, (weight,))
    with pytest.raises(ValueError, match=r"running: expected .*, got Tensor"):
        dla.norm_add(x, x, weight, weight, torch.ones(2, 3))
    with pytest.raises(TypeError, match="momentum: expected a float, got NoneType"):
        dla.norm_add(x, x, weight, weight, (weight, weight), momentum=None)
    pixel = x[:1, :, :1, :1]
    with pytest.raises(ValueError, match=r"o: expected more than one value per channel .*, got \[1, 3, 1, 1\]"):
        dla.norm_add(pixel, pixel, weight, weight, None, moments=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"o: expected shape \[2, 3, 4, 4\] like x, got \[2, 3, 4, 3\]"):
        dla.norm_add(x, x[..., :3], weight, weight, (weight, weight))
