"""``convert`` finds out what a stage is before it touches a network, and refuses what is none."""

import copy

import pytest
import torch
from torch import nn

import dla_kernels as dla

from .test_convert import OwnStage, TheirNet, let_attention_speak, own


class Between(nn.Module):
    """This stage does something to its map between its two blocks, or after them."""

    def __init__(self, between=False, after=False):
        super().__init__()
        self.a, self.b, self.between, self.after = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), between, after

    def forward(self, x):
        x = self.a(x)
        x = self.b(2 * x if self.between else x)
        return 2 * x if self.after else x


class Unlike(nn.Sequential):
    def __init__(self, *stages):
        super().__init__(nn.Conv2d(3, 16, 1), *stages)


@pytest.mark.parametrize(
    "net, stages, error, message",
    [
        (own, "1", TypeError, r"stages: expected a sequence of names, got '1'; \['1'\] is one"),
        (own, ["trunk"], ValueError, "Sequential has no such 'trunk'; it has none"),
        (TheirNet, ["layer5"], ValueError, "TheirNet has no such 'layer5'; it has layer1, layer2, layer3, layer4"),
        (
            lambda: Unlike(Between(between=True)),
            ["1"],
            TypeError,
            "each block of 1 to be given what the one before made",
        ),
        (lambda: Unlike(Between(after=True)), ["1"], TypeError, "1 to return what its last block made"),
        (
            lambda: Unlike(nn.Sequential(*[nn.ReLU()] * 2)),
            ["1"],
            TypeError,
            "1 and each of its blocks to be called once",
        ),
        (
            lambda: Unlike(nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1))),
            ["1"],
            ValueError,
            r"all blocks of 1 to make maps \[B, C, H, W\] of one size, .*got \[1, 16, 224, 224\], \[1, 8, 224, 224\]",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 16, 1), OwnStage()),
            ["1"],
            ValueError,
            r"example: expected what Sequential can be called with .* but with \[\[1, 3, 224, 224\]\] it fails",
        ),
    ],
)
def test_what_is_no_stage_is_refused(net, stages, error, message):
    net = net()
    before = copy.deepcopy(net)
    with pytest.raises(error, match=message):
        dla.convert(net, stages=stages)
    assert str(net) == str(before)


class Renamed(nn.Module):
    def __init__(self, **blocks):
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


class WithOwn(Renamed):
    def __init__(self, **blocks):
        super().__init__(**blocks)
        self.temperature = nn.Parameter(torch.ones(1))


class Last(nn.Module):
    """This block has channels last."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(96, 96)

    def forward(self, x):
        return x + self.linear(x)


def conv():
    return nn.Conv2d(16, 16, 1)


@pytest.mark.parametrize(
    ("stage", "stages", "error", "message"),
    [
        (lambda: nn.Sequential(conv(), conv()), (), ValueError, "stages: expected at least one name, got none"),
        (lambda: nn.Sequential(conv(), conv()), [""], ValueError, "has no such ''"),
        (
            lambda: nn.Sequential(conv(), conv()),
            ["1", "1"],
            ValueError,
            "expected each once and none inside of another",
        ),
        (lambda: nn.Sequential(nn.Sequential(conv())), ["1.0", "1"], ValueError, "none inside of another"),
        (lambda: Renamed(blocks=conv()), ["1"], ValueError, r"names than blocks; perhaps .*, as 1\.blocks"),
        (lambda: Renamed(attention=conv()), ["1"], ValueError, "other names than attention"),
        (lambda: WithOwn(a=conv(), b=conv()), ["1"], TypeError, "blocks alone, got one with temperature of its own"),
    ],
)
def test_a_stage_that_would_lose_something_is_refused(stage, stages, error, message):
    net = Unlike(stage())
    with pytest.raises(error, match=message):
        dla.convert(net, stages=stages)
    assert not any(type(m).__name__ == "ConvertedStage" for m in net.modules())


def test_a_block_that_takes_more_than_a_map_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = conv()

        def forward(self, x, scale=1.0):
            return self.c(x) * scale

    class Scaling(Renamed):
        def forward(self, x):
            return self.b(self.a(x, scale=10.0), 10.0)

    with pytest.raises(TypeError, match="1 and its blocks to be called with a map and nothing else"):
        dla.convert(Unlike(Scaling(a=Scaled(), b=Scaled())), stages=["1"])


def test_channels_that_come_last_are_refused():
    class To(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    net = nn.Sequential(nn.Conv2d(3, 96, 4, 4), To(), nn.Sequential(Last(), Last()))
    with pytest.raises(ValueError, match=r"expected maps .* got \[1, 56, 56, 96\], whose channels seem last"):
        dla.convert(net, stages=["2"])


def test_stages_may_be_any_iterable_and_have_two_names():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.Sequential(conv(), conv())
            self.body = nn.Sequential(nn.Conv2d(3, 16, 1), self.stage)

        def forward(self, x):
            return self.body(x)

    net = dla.convert(Both(), stages=(name for name in ["stage"]))
    assert net.body[1] is net.stage and hasattr(net.stage, "attention")
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class InPlace(nn.Module):
    """This block writes over its shortcut, or over its input."""

    def __init__(self, inputs=16, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 32, 3, stride, 1)
        self.downsample = nn.Conv2d(inputs, 32, 1, 2) if stride > 1 else None

    def forward(self, x):
        if self.downsample is None:
            return self.conv(x.relu_())
        x, shortcut = self.conv(x), self.downsample(x)
        shortcut += x
        return shortcut.relu_()


def test_shortcuts_that_a_block_writes_over_are_kept_as_they_were():
    net = dla.convert(
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(InPlace(16, 2), InPlace(32))), stages=["1"]
    ).eval()
    for layer in net[1].attention.layers:
        nn.init.normal_(layer.norm.weight)
    seen = []
    net[1].attention.register_forward_pre_hook(lambda module, args: seen.append([x.clone() for x in args[1:3]]))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net(x)
        assert torch.equal(seen[0][1], net[1][0].downsample(net[0](x)))
        first = net[1].attention(0, *seen[0], None)[0]
    assert torch.equal(seen[1][1], first) and (first < 0).any()


def test_a_block_called_by_itself_leaves_nothing_behind():
    net = dla.convert(TheirNet().eval()).eval()
    let_attention_speak(net)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        net.layer2[0](torch.zeros(2, 64, 16, 16))
        torch._dynamo.reset()
        for block in net.layer2.blocks:
            block.compile(backend="eager")
        torch.testing.assert_close(net(x), expected)


def test_hooks_of_a_stage_stay():
    net, seen = TheirNet(), []
    net.layer2.register_forward_hook(lambda *_: seen.append("layer2"))
    dla.convert(net)(torch.randn(2, 3, 16, 16))
    assert seen == ["layer2"]


def test_a_conversion_that_fails_leaves_no_hooks():
    net = TheirNet()
    with pytest.raises(ValueError, match="head_channels"):
        dla.convert(net, head_channels=64 + 32)
    assert not any(m._forward_hooks for m in net.modules())


def test_networks_whose_tensors_are_not_all_parameters_are_surveyed():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(conv(), conv()))
    nn.utils.weight_norm(net[1][0])
    net[0].mean = torch.zeros(1, 3, 1, 1)
    net[0].register_forward_pre_hook(lambda module, args: (args[0] - module.mean.to(args[0].device),))
    net[1][1].last = net(torch.randn(1, 3, 4, 4))  # has a graph
    dla.convert(net, stages=["1"])(torch.randn(2, 3, 4, 4)).sum().backward()
    bare = nn.Sequential(nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)))
    assert dla.convert(bare, stages=["0"])(torch.randn(1, 3, 4, 4)).shape == (1, 3, 4, 4)


def test_an_example_stands_for_an_image():
    net = nn.Sequential(nn.Conv2d(4, 16, 1), OwnStage())
    dla.convert(net, stages=["1"], example=torch.zeros(1, 4, 8, 8))
    net(torch.randn(2, 4, 8, 8))
