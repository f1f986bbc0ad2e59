"""Attention modules inside a block scale as their papers' formulas say, and are shared along a stage but for norms."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from dla_kernels.models.blocks import BasicBlock
from dla_kernels.models.resnet import ResNetStage
from dla_kernels.nn import CBAM, ECA, SE, SGE, SPA, SRM, DIACell, LayerwiseIntegration, Shared

from .tolerances import assert_equal_to_rounding

B, C = 3, 12
MODULES = {
    "se": lambda: SE(C, 4),
    "se-bias": lambda: SE(C, 4, bias=True),
    "eca": lambda: ECA(C),
    "eca-5": lambda: ECA(C, kernel_size=5),
    "cbam": lambda: CBAM(C, 4),
    "cbam-3": lambda: CBAM(C, 4, 3),
    "srm": lambda: SRM(C),
    "spa": lambda: SPA(C, 4),
    "sge": lambda: SGE(C, 4),
}
SIZES = [(5, 7), (8, 8), (1, 3)]


def plain_se(m, x):
    hidden = torch.einsum("bchw,rc->br", x, m.squeeze.weight) / x[0, 0].numel()
    hidden = hidden if m.squeeze.bias is None else hidden + m.squeeze.bias
    gate = hidden.clamp(min=0) @ m.excite.weight.T
    gate = gate if m.excite.bias is None else gate + m.excite.bias
    return x * gate.sigmoid()[:, :, None, None]


def plain_eca(m, x):
    y, K = x.mean((2, 3)), len(m.taps)
    padded = F.pad(y, (K // 2, K // 2))
    gate = sum(m.taps[k] * padded[:, k : k + C] for k in range(K)).sigmoid()
    return x * gate[:, :, None, None]


def plain_cbam(m, x):
    def mlp(y):
        return (y @ m.squeeze.weight.T).relu() @ m.excite.weight.T

    x = x * (mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values)).sigmoid()[:, :, None, None]
    K = m.spatial.kernel_size[0]
    columns = F.unfold(torch.stack([x.mean(1), x.max(1).values], 1), K, padding=K // 2)
    gate = torch.einsum("bkp,k->bp", columns, m.spatial.weight.flatten()).sigmoid()
    return x * gate.view(B, 1, *x.shape[2:])


def plain_srm(m, x):
    mean = x.flatten(2).mean(2)
    std = ((x.flatten(2) - mean[:, :, None]).square().mean(2) + m.eps) ** 0.5
    z = m.weight[:, 0] * mean + m.weight[:, 1] * std
    if m.training:
        z = (z - z.mean(0)) / (z.var(0, correction=0) + m.bn.eps) ** 0.5
    else:
        z = (z - m.bn.running_mean) / (m.bn.running_var + m.bn.eps) ** 0.5
    return x * (z * m.bn.weight + m.bn.bias).sigmoid()[:, :, None, None]


def plain_spa(m, x):
    means = []
    for side in (1, 2, 4):
        for c in range(C):
            for i in range(side):
                for j in range(side):
                    H, W = x.shape[2:]
                    rows = slice(i * H // side, -(-(i + 1) * H // side))
                    columns = slice(j * W // side, -(-(j + 1) * W // side))
                    means.append(x[:, c, rows, columns].mean((1, 2)))
    hidden = torch.stack(means, 1) @ m.squeeze.weight.T
    return x * (hidden.relu() @ m.excite.weight.T).sigmoid()[:, :, None, None]


def plain_sge(m, x):
    out = []
    for b in range(B):
        for group, channels in enumerate(x[b].chunk(m.groups)):
            g = sum(channel * channel.mean() for channel in channels)
            g = (g - g.mean()) / (((g - g.mean()) ** 2).mean() ** 0.5 + m.eps)
            out.append(channels * (m.gamma[group] * g + m.beta[group]).sigmoid())
    return torch.cat(out).view(x.shape)


PLAIN = {"se": plain_se, "eca": plain_eca, "cbam": plain_cbam, "srm": plain_srm, "spa": plain_spa, "sge": plain_sge}


def made(name):
    """Return a module whose parameters are random, also those that begin at zero."""
    module = MODULES[name]().double()
    for p in module.parameters():
        nn.init.normal_(p)
    return module


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_and_its_gradients_are_as_the_formula_says(name, training, size):
    module = made(name).train(training)
    ours = torch.randn(B, C, *size, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    dout = torch.randn_like(theirs)
    plain = copy.deepcopy(module)
    expected = PLAIN[name.partition("-")[0]](plain, theirs)
    out = module(ours)
    assert_equal_to_rounding([out], [expected], 100)
    grads = torch.autograd.grad(out, [ours, *module.parameters()], dout)
    wanted = torch.autograd.grad(expected, [theirs, *plain.parameters()], dout)
    for grad, want in zip(grads, wanted):
        torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_every_layout_and_dtype(name):
    module = made(name).eval()
    x = torch.randn(B, C, 6, 4, dtype=torch.float64)
    expected = module(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert_equal_to_rounding([last], [expected])
    half = module.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0.1, atol=0.1)


def test_the_filter_of_eca_is_summed_in_the_dtype_of_the_means():
    module, x = ECA(C).bfloat16(), torch.randn(B, C, 4, 4, dtype=torch.bfloat16)
    taps = module.taps.float()
    gate = F.conv1d(x.float().mean((2, 3))[:, None], taps[None, None], padding=len(taps) // 2)[:, 0].sigmoid()
    assert torch.equal(module(x), (x.float() * gate[:, :, None, None]).bfloat16())


@pytest.mark.parametrize("name", MODULES)
def test_a_plane_that_is_constant_has_finite_gradients(name):
    x = torch.ones(B, C, 4, 4, dtype=torch.float64, requires_grad=True)
    module = made(name)
    module(x).sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *module.parameters()))


def test_modules_begin_where_their_papers_do():
    x = torch.randn(B, C, 4, 4, dtype=torch.float64)
    out = [SRM(C).double()(x), SGE(C, 4).double()(x)]
    assert_equal_to_rounding(out, [x / 2, x * torch.ones((), dtype=x.dtype).sigmoid()])


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_as_many_parameters_as_its_formula(name):
    count = sum(p.numel() for p in MODULES[name]().parameters())
    R = C // 4
    counts = {"se": 2 * C * R, "se-bias": 2 * C * R + C + R, "eca": 3, "eca-5": 5, "cbam": 2 * C * R + 98}
    counts |= {"cbam-3": 2 * C * R + 18, "srm": 4 * C, "spa": 22 * C * R, "sge": 8}
    assert count == counts[name]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SE(C, 0), "reduction: expected an integer of at least 1, got 0"),
        (lambda: ECA(C, kernel_size=4), "kernel_size: expected an odd integer, got 4"),
        (lambda: CBAM(C, kernel_size=2), "kernel_size: expected an odd integer, got 2"),
        (lambda: SGE(C, 5), "groups: expected a divisor of the 12 channels, got 5"),
        (lambda: SE(C, backend="tpu"), "backend: expected None or one of"),
        (lambda: SE(C)(torch.ones(1, 8, 2, 2)), r"x: expected \[B, 12, H, W\], got \[1, 8, 2, 2\]"),
        (lambda: Shared(SE(C), 0), "layers: expected an integer of at least 1, got 0"),
        (lambda: Shared(SE(C), 2)(2, torch.ones(1, C, 2, 2)), "t: expected one of 2 layers, counted from 0, got 2"),
    ],
)
def test_errors_say_what_was_expected(make, said):
    with pytest.raises((ValueError, IndexError), match=said):
        make()


# ---- one module for all layers ----


def test_layers_share_all_but_their_norms():
    shared = Shared(SRM(C), 3).double()
    nn.init.normal_(shared.module.weight)
    assert {name: list(p.shape) for name, p in shared.named_parameters()} == {
        "module.weight": [C, 2],
        **{f"module.bn.{t}.{name}": [C] for t in range(3) for name in ("weight", "bias")},
    }
    for t in range(3):
        x = torch.randn(B, C, 4, 4, dtype=torch.float64)
        alone = SRM(C).double()
        alone.weight, alone.bn = shared.module.weight, copy.deepcopy(shared.module.bn[t])
        assert_equal_to_rounding([shared(t, x)], [alone(x)])
        counts = [int(norm.num_batches_tracked) for norm in shared.module.bn]
        assert counts == [1] * (t + 1) + [0] * (2 - t)
    sum(shared(t, torch.randn(B, C, 4, 4, dtype=torch.float64)).square().sum() for t in range(3)).backward()
    assert all(p.grad.abs().sum() > 0 for p in shared.parameters())


def test_a_module_that_is_a_norm_or_has_none_can_be_shared_too():
    x = torch.randn(B, C, 4, 4)
    norms = Shared(nn.BatchNorm2d(C), 2)
    norms(1, x)
    assert [int(norm.num_batches_tracked) for norm in norms.module] == [0, 1]
    se = Shared(SE(C), 2)
    assert torch.equal(se(0, x), se(1, x))
    assert list(se.state_dict()) == ["module.squeeze.weight", "module.excite.weight"]


def test_what_a_shared_module_takes_and_returns_is_its_own_affair():
    integrate = LayerwiseIntegration(DIACell(C))
    shared, x, a = Shared(integrate, 2), torch.randn(B, C, 4, 4), torch.randn(B, C, 4, 4)
    out, state = shared(0, x, a)
    again, _ = shared(1, out, a, state)
    expected, state = integrate(x, a)
    assert torch.equal(again, integrate(expected, a, state)[0])


def test_checkpointing_repeats_the_layer_that_it_was():
    from torch.utils.checkpoint import checkpoint

    shared, x = Shared(SRM(C), 2).double().eval(), torch.randn(B, C, 4, 4, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(shared.module.bn[0].bias)
    wanted = torch.autograd.grad(shared(1, shared(0, x)).square().sum(), x)[0]
    first = checkpoint(shared, 0, x, use_reentrant=False)
    out = checkpoint(shared, 1, first, use_reentrant=False)
    assert_equal_to_rounding([torch.autograd.grad(out.square().sum(), x)[0]], [wanted])


# ---- what the op cannot see is run step by step ----


@pytest.mark.parametrize("make", [lambda: SE(8, 2), lambda: SE(8, 2, bias=True)])
def test_pruned_and_normalised_layers_are_called(make):
    for hang in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer),
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
    ):
        module, x = make(), torch.randn(2, 8, 4, 4)
        hang(module.squeeze)
        for _ in range(2):  # the second backward pass fails where the weight is not made anew
            module(x, x).sum().backward()
        gate = torch.sigmoid(module.excite(module.squeeze(x.mean((2, 3))).relu()))[:, :, None, None]
        torch.testing.assert_close(module.eval()(x), x * gate, rtol=1e-4, atol=1e-5)


def test_a_subclass_with_gates_of_its_own_is_asked_for_them():
    class Open(SE):
        def gate(self, x):
            return torch.ones(x.shape[:2])

    class Halved(ECA):
        def scaled(self, x):
            return x / 2

    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(Open(8)(x), x)
    assert torch.equal(Halved(8)(x, x), (x + x / 2).relu())


@pytest.mark.parametrize("make", [lambda: SE(8), lambda: ECA(8)])
def test_gates_are_those_by_which_the_op_scales(make):
    module, x = make(), torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(module.scaled(x), module(x))
    torch.testing.assert_close(module.gate(x)[:, :, None, None] * x, module(x))


def test_cells_that_are_watched_are_called():
    x, a = torch.randn(2, 2, 8, 4, 4)
    integrate, seen = LayerwiseIntegration(DIACell(8)), []
    plain, _ = integrate(x, a)
    handle = integrate.cell.register_forward_hook(lambda *_: seen.append(1))
    watched, _ = integrate(x, a)
    handle.remove()
    integrate(x, a)
    assert len(seen) == 1
    torch.testing.assert_close(watched, plain)
    forward = integrate.cell.forward
    integrate.cell.forward = lambda *args: seen.append(2) or forward(*args)
    integrate(x, a)
    assert seen == [1, 2]


@pytest.mark.parametrize("relu", [True, False])
def test_a_shortcut_of_another_dtype_or_size_is_added_as_torch_does(relu):
    x, a = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4).bfloat16()
    integrate = LayerwiseIntegration(DIACell(8))
    out, _ = integrate(x, a, relu=relu)
    scaled, _ = integrate(torch.zeros_like(a), a)
    expected = x + scaled
    torch.testing.assert_close(out, expected.relu() if relu else expected)
    assert out.dtype == torch.float32
    assert integrate(x[:1], a.float(), relu=relu)[0].shape == x.shape
    assert SE(8)(a, x).dtype == torch.float32


def test_a_block_takes_any_module_that_scales_its_branch():
    block = BasicBlock(8, 8, recalibrate=nn.Tanh())
    stage, x = ResNetStage([("0", block)], None), torch.randn(2, 8, 4, 4)
    a, identity = block(x)
    torch.testing.assert_close(stage(x), (identity + a.tanh()).relu(), rtol=1e-4, atol=1e-5)
