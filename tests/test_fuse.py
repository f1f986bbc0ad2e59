"""``fuse`` replaces squeeze-and-excitation modules in place: weights and names kept, outputs equal to rounding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import dla_kernels as dla
from dla_kernels.nn import FusedSE

from .clients import imported


class Squeezed(nn.Module):
    """This is written like timm's SEModule, and with other names like its SqueezeExcite and torchvision's."""

    def __init__(self, channels, names=("fc1", "act", "fc2", "gate"), act=nn.ReLU, gate=nn.Sigmoid, bias=True):
        super().__init__()
        self.names = names
        layers = nn.Conv2d(channels, 4, 1, bias=bias), act(), nn.Conv2d(4, channels, 1, bias=bias), gate()
        for name, layer in zip(names, layers):
            self.add_module(name, layer)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        for name in self.names:
            y = getattr(self, name)(y)
        return x * y


NAMES = [
    ("fc1", "act", "fc2", "gate"),
    ("conv_reduce", "act1", "conv_expand", "gate"),
    ("fc1", "activation", "fc2", "scale_activation"),
]


def network(**how):
    branch = nn.Sequential(nn.Conv2d(8, 12, 3), Squeezed(12, **how))
    return nn.Sequential(nn.Conv2d(3, 8, 3), Squeezed(8, **how), nn.Sequential(branch))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0] + "-" + names[3])
def test_outputs_gradients_and_names_stay(names, bias):
    net, x = network(names=names, bias=bias).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    plain = copy.deepcopy(net)
    done = dla.fuse(net)
    assert done.replaced == ["1", "2.0.1"] and done.left == {}
    assert isinstance(net[1], FusedSE)
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in plain.named_parameters()]
    net.load_state_dict(plain.state_dict())
    for one in (net, plain):
        one(x).square().sum().backward()
    torch.testing.assert_close(net(x), plain(x), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(net.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_it_keeps_parameters_themselves_and_the_mode():
    net = network().eval()
    before = {id(p) for p in net.parameters()}
    dla.fuse(net)
    assert {id(p) for p in net.parameters()} == before
    assert not any(module.training for module in net.modules())


def test_what_was_fused_is_not_fused_again():
    net = network()
    assert len(dla.fuse(net).replaced) == 2
    assert dla.fuse(net) == ([], {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: setattr(m, "act", nn.SiLU()), "expected ReLU between its layers, got SiLU"),
        (lambda m: setattr(m, "gate", nn.Hardsigmoid()), "expected Sigmoid behind them, got Hardsigmoid"),
        (lambda m: setattr(m, "bn", nn.BatchNorm2d(4)), "expected no norm between its layers, got one"),
        (lambda m: setattr(m, "add_maxpool", True), "expected means alone, got maxima too"),
        (lambda m: setattr(m, "fc2", nn.Conv2d(4, 8, 3)), r"expected 1x1 convolutions, got Conv2d\(4, 8"),
        (lambda m: setattr(m, "fc1", nn.Conv2d(8, 4, 1, groups=2)), r"expected 1x1 convolutions, got Conv2d\(8, 4"),
        (lambda m: setattr(m, "fc1", nn.Linear(8, 4)), r"expected 1x1 convolutions, got Linear"),
    ],
)
def test_what_is_left_is_left_as_it_is_and_the_reason_said(change, why):
    net = nn.Sequential(Squeezed(8), Squeezed(8))
    change(net[0])
    left = net[0]
    done = dla.fuse(net)
    assert net[0] is left
    assert (done.replaced, list(done.left)) == (["1"], ["0"])
    assert done.left["0"].startswith(why.replace("\\", ""))
    assert str(done) == f"1 squeeze-and-excitation modules replaced, 1 left\n  0: {done.left['0']}"


class Otherwise(Squeezed):
    """These look like squeeze-and-excitation, and are none."""

    def __init__(self, forward):
        super().__init__(8)
        self.makes = forward

    def forward(self, x):
        return self.makes(self, x)


def gates_of(module, y):
    return module.gate(module.fc2(module.act(module.fc1(y))))


@pytest.mark.parametrize(
    "forward",
    [
        # timm's ChannelAttn, of CBAM, has these names too
        lambda m, x: x * m.gate(sum(m.fc2(m.act(m.fc1(y))) for y in (x.mean((2, 3), True), x.amax((2, 3), True)))),
        lambda m, x: x + Squeezed.forward(m, x),
        lambda m, x: gates_of(m, x.mean((2, 3), True)),
        lambda m, x: x * gates_of(m, x),
        lambda m, x: x.relu_() * gates_of(m, x.mean((2, 3), True)),
        lambda m, x: m.missing(x),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_what_computes_otherwise_is_left(forward, zeros):
    net = nn.Sequential(Otherwise(forward))
    if zeros:  # of which the weights that it happens to have say nothing
        for p in net.parameters():
            nn.init.zeros_(p)
    done = dla.fuse(net)
    assert isinstance(net[0], Otherwise) and list(done.left) == ["0"] and done.replaced == []


def test_what_hooks_watch_and_what_has_more_weights_is_left():
    net = nn.Sequential(*(Squeezed(8) for _ in range(4)))
    net[0].register_forward_hook(lambda *_: None)
    prune.l1_unstructured(net[1].fc1, "weight", 0.5)
    net[2].extra = nn.Parameter(torch.ones(1))
    done = dla.fuse(net)
    assert done.replaced == ["3"]
    assert [done.left[name].partition(",")[0] for name in "012"] == [
        "expected no hooks",
        "expected no hooks",
        "expected its two convolutions to have all of its weights",
    ]


def test_one_module_in_several_places_stays_one():
    net = nn.Sequential(Squeezed(8), nn.Sequential(nn.ReLU()))
    net.append(net[0]), net[1].append(net[0])
    assert dla.fuse(net).replaced == ["0", "2", "1.1"]
    assert net[0] is net[2] is net[1][1]


def test_a_module_alone_has_no_place_for_another_and_what_is_none_is_refused():
    assert list(dla.fuse(Squeezed(8)).left) == [""]
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got NoneType"):
        dla.fuse(None)


def test_without_numbers_and_in_half_precision_too():
    with torch.device("meta"):
        assert len(dla.fuse(network()).replaced) == 2
    net = network().bfloat16()
    assert len(dla.fuse(net).replaced) == 2
    assert net(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)).isfinite().all()


def test_a_wrong_backend_is_refused_before_anything_changes():
    net = network()
    with pytest.raises(ValueError, match="backend: expected None or one of"):
        dla.fuse(net, backend="tpu")
    assert isinstance(net[1], Squeezed)


def same_outputs(net, *shape):
    x = torch.randn(shape)
    with torch.no_grad():
        expected = net(x)
        done = dla.fuse(net)
        torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-4)
    return done


def test_a_network_of_timm():
    timm = imported("timm")
    done = same_outputs(timm.create_model("seresnet18").eval(), 2, 3, 64, 64)
    assert len(done.replaced) == 8
    done = same_outputs(timm.create_model("mobilenetv3_small_050").eval(), 2, 3, 64, 64)
    assert done.replaced == []
    assert len(done.left) == 9
    assert {why for why in done.left.values()} == {"expected Sigmoid behind them, got Hardsigmoid"}


def test_a_network_of_torchvision():
    done = same_outputs(imported("torchvision.models").regnet_y_400mf().eval(), 2, 3, 64, 64)
    assert len(done.replaced) == 16
    assert done.left == {}
