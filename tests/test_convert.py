"""Layer attention for networks that are there already. Torchvision's and timm's where they can be imported; else
blocks written as theirs are."""

import copy

import pytest
import torch
from torch import nn

import dla_kernels as dla

from .tolerances import assert_equal_to_rounding


class TheirBlock(nn.Module):
    """As torchvision's: it adds its shortcut itself."""

    expansion = 4

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )
        self.calls = 0

    def forward(self, x):
        self.calls = self.calls + 1  # reaches the block itself
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class TheirNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        inputs = 16
        for i in range(4):
            width = 16 * 2**i
            blocks = [TheirBlock(inputs, width, 1 + (i > 0)), TheirBlock(4 * width, width)]
            inputs = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        x = self.conv1(x).relu()
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


def torchvisions():
    return pytest.importorskip("torchvision.models", exc_type=ImportError).resnet18(num_classes=10)


def timms():
    return pytest.importorskip("timm", exc_type=ImportError).create_model("resnet18", num_classes=10)


@pytest.mark.parametrize("make", [TheirNet, torchvisions, timms], ids=["alike", "torchvision", "timm"])
@pytest.mark.parametrize("attention", ["dla_light", "dla_base", "mrla_light", "mrla_base"])
def test_a_converted_network_is_what_it_was_until_trained(make, attention):
    net = make().double()
    before = copy.deepcopy(net)
    own = {name: p for name, p in net.named_parameters()}
    assert dla.convert(net, attention, reduction=8) is net
    after = dict(net.named_parameters())
    assert all(
        after[name.replace(f"layer{name[5]}.", f"layer{name[5]}.layers.", 1) if name.startswith("layer") else name] is p
        for name, p in own.items()
    )
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert_equal_to_rounding([net(x)], [before(x)], factor=100)  # in training
    ours = [m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and ".attention." not in n]
    theirs = [m for m in before.modules() if isinstance(m, nn.BatchNorm2d)]
    assert_equal_to_rounding([m.running_mean for m in ours], [m.running_mean for m in theirs], factor=100)
    assert [m.num_batches_tracked.item() for m in ours] == [1] * len(ours)  # no shortcut went twice
    assert_equal_to_rounding([net.eval()(x)], [before.eval()(x)], factor=100)


def test_and_then_learns():
    net = dla.convert(TheirNet())
    x = torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    first = net(x).square().mean()
    first.backward()
    optimizer.step(), optimizer.zero_grad()
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    added = [p for name, p in net.named_parameters() if ".attention." in name]
    assert sum(p.grad.abs().sum() > 0 for p in added) > len(added) // 2


def test_converted_networks_compile_and_copy():
    torch._dynamo.reset()
    net = dla.convert(TheirNet().eval()).eval()
    for norm in (m for n, m in net.named_modules() if n.endswith(".norm")):
        nn.init.ones_(norm.weight)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(copy.deepcopy(net)(x), expected)
        torch.testing.assert_close(torch.compile(net, backend="aot_eager")(x), expected, rtol=1e-4, atol=1e-5)
    fresh = dla.convert(TheirNet()).eval()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), expected)


def test_it_goes_where_the_network_is():
    net = dla.convert(TheirNet().to(torch.float64).eval(), drop_path=0.1)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert not any(m.training for m in net.modules())
    assert net.layer1.attention.drop_path == 0.1


def test_mistakes_are_explained():
    with pytest.raises(TypeError, match=r"model: expected a ResNet whose layer1 is a sequence of blocks.*, got Linear"):
        dla.convert(nn.Linear(3, 3))
    net = TheirNet()
    with pytest.raises(ValueError, match=r"attention: expected dla_light, .*, got 'se', which works inside the blocks"):
        dla.convert(net, "se")
    assert isinstance(net.layer1, nn.Sequential)  # nothing was changed
    dla.convert(net)
    with pytest.raises(ValueError, match="model: expected one without layer attention, got one whose layer1"):
        dla.convert(net)
