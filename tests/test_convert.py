"""``convert`` gives layer attention to networks that are there already: to torchvision's and timm's, and to one whose
blocks are written as theirs are."""

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import dla_kernels as dla

from .clients import imported
from .tolerances import assert_equal_to_rounding


class TheirBlock(nn.Module):
    """This block is as torchvision's: it adds its shortcut itself."""

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
        self.calls = self.calls + 1
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
    return imported("torchvision.models").resnet18(num_classes=10)


def timms():
    return imported("timm").create_model("resnet18", num_classes=10)


def let_attention_speak(net):
    """Give the added norms a weight, with which the network no longer computes what it did."""
    for norm in (m for n, m in net.named_modules() if n.endswith(".norm")):
        nn.init.ones_(norm.weight)


class OwnStage(nn.Module):
    """This stage is no nn.Sequential, and its first block reduces the map without a shortcut."""

    def __init__(self):
        super().__init__()
        for t in range(3):
            reduce = nn.Conv2d(48 if t else 16, 48, 3, 1 if t else 2, padding=1)
            self.add_module(f"b{t}", nn.Sequential(reduce, nn.BatchNorm2d(48), nn.ReLU(inplace=True)))

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


def own():
    ends = [nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
    return nn.Sequential(ends[0], OwnStage(), *ends[1:])


def of_torchvision(name):
    return lambda: getattr(imported("torchvision.models"), name)(num_classes=10)


def of_timm(name):
    return lambda: imported("timm").create_model(name, num_classes=10)


BLOCKS_OF_STAGES = [f"stages.{s}.blocks" for s in range(4)]
# Networks, and where their stages are; of some how many blocks have a shortcut with a module of its own.
OTHERS = {
    "own": (own, ["1"], 0),
    "torchvision's RegNet": (of_torchvision("regnet_y_400mf"), [f"trunk_output.block{s}" for s in range(1, 5)], 4),
    "torchvision's ConvNeXt": (of_torchvision("convnext_tiny"), [f"features.{s}" for s in (1, 3, 5, 7)], 0),
    "timm's RegNet": (of_timm("regnety_002"), [f"s{s}" for s in range(1, 5)], 4),
    "timm's ConvNeXt": (of_timm("convnext_atto"), BLOCKS_OF_STAGES, 0),
    "timm's ResNetV2": (of_timm("resnetv2_18"), BLOCKS_OF_STAGES, 3),
    "timm's CSP": (of_timm("cspresnet50"), BLOCKS_OF_STAGES, 0),
}


@pytest.mark.parametrize("attention", ["dla_light", "mrla_base"])
@pytest.mark.parametrize("name", OTHERS)
def test_any_network_of_stages_can_be_converted(name, attention):
    make, stages, shortcuts = OTHERS[name]
    net = make().double().eval()
    before = copy.deepcopy(net)
    assert dla.convert(net, attention, stages=stages) is net
    converted = [net.get_submodule(stage) for stage in stages]
    assert sum(kept is not None for stage in converted for kept in stage.shortcuts) == shortcuts
    assert {*before.state_dict()} == {key for key in net.state_dict() if ".attention." not in key}
    for norm in (m for stage in converted for n, m in stage.attention.named_modules() if n.endswith(".norm")):
        nn.init.zeros_(norm.weight)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_equal_to_rounding([net(x)], [before(x)], factor=100)
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())  # else DistributedDataParallel would wait for some


def test_a_first_block_without_a_shortcut_starts_alone():
    """Its input has another size: light attention has no layer before it."""
    net = dla.convert(own(), "dla_light", stages=["1"])
    seen = []
    net[1].attention.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    net(torch.randn(1, 3, 16, 16))
    assert seen[0] is None and [list(o_prev.shape) for o_prev in seen[1:]] == [[1, 48, 7, 7]] * 2


def test_channels_that_32_does_not_divide_have_heads_of_a_divisor():
    net = dla.convert(of_timm("regnety_002")(), stages=[f"s{s}" for s in range(1, 5)])
    attentions = [stage.attention for stage in (net.s1, net.s2, net.s3, net.s4)]
    assert [(a.channels, a.channels // a.heads) for a in attentions] == [(24, 24), (56, 28), (152, 19), (368, 23)]


def test_the_survey_of_a_network_leaves_no_trace():
    net = TheirNet()
    state = {name: x.clone() for name, x in net.state_dict().items()}
    dla.convert(net)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in state.items())
    assert not any(m._forward_hooks for n, m in net.named_modules() if not n.endswith("downsample"))
    assert [block.calls for stage in (net.layer1, net.layer4) for block in stage.blocks] == [0] * 4


@pytest.mark.parametrize("make", [TheirNet, torchvisions, timms], ids=["alike", "torchvision", "timm"])
@pytest.mark.parametrize("attention", ["dla_light", "dla_base", "mrla_light", "mrla_base"])
def test_a_converted_network_computes_as_before_until_it_is_trained(make, attention):
    net = make().double()
    before = copy.deepcopy(net)
    own = {name: p for name, p in net.named_parameters()}
    options = {"reduction": 8} if attention.startswith("dla") else {}
    assert dla.convert(net, attention, **options) is net
    after = dict(net.named_parameters())
    assert all(after[name] is p for name, p in own.items())
    if "base" in attention:  # whose norms begin near zero, not at zero
        for norm in (m for n, m in net.named_modules() if n.endswith(".norm")):
            assert (norm.weight == torch.tensor(0.01).double()).all()
            nn.init.zeros_(norm.weight)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert_equal_to_rounding([net(x)], [before(x)], factor=100)  # in training
    ours = [m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and ".attention." not in n]
    theirs = [m for m in before.modules() if isinstance(m, nn.BatchNorm2d)]
    assert_equal_to_rounding([m.running_mean for m in ours], [m.running_mean for m in theirs], factor=100)
    assert [m.num_batches_tracked.item() for m in ours] == [1] * len(ours)  # no shortcut was computed twice
    assert_equal_to_rounding([net.eval()(x)], [before.eval()(x)], factor=100)


@pytest.mark.parametrize("attention", ["dla_light", "dla_base", "mrla_light", "mrla_base"])
def test_every_added_parameter_of_a_converted_network_learns(attention):
    net = dla.convert(TheirNet(), attention)
    x = torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    added = {name: p.detach().clone() for name, p in net.named_parameters() if ".attention." in name}
    for _ in range(3):
        net(x).square().mean().backward()
        optimizer.step(), optimizer.zero_grad()
    still = [name for name, p in net.named_parameters() if name in added and torch.equal(p, added[name])]
    # The first layer of base attends to itself alone, whatever its query is.
    assert still == [name for name in added if "base" in attention and name.endswith("layers.0.q")]


def test_blocks_are_called_as_modules():
    """Whoever wraps, compiles or hooks them finds them called."""
    net = dla.convert(TheirNet())
    seen = []
    for i in range(4):
        for block in getattr(net, f"layer{i + 1}").blocks:
            block.register_forward_hook(lambda block, *_: seen.append(block))
    net(torch.randn(2, 3, 16, 16))
    assert [block.calls for block in seen] == [1] * 8
    net.layer2[0] = torch.compile(net.layer2[0], backend="aot_eager")
    net(torch.randn(2, 3, 16, 16)).sum().backward()


def test_threads_have_shortcuts_of_their_own():
    net = dla.convert(TheirNet().eval()).eval()
    let_attention_speak(net)
    images = torch.randn(4, 1, 3, 16, 16)

    def run(x):
        with torch.no_grad():
            return torch.stack([net(x) for _ in range(5)])

    expected = [run(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for out, alone in zip(pool.map(run, images), expected):
            assert torch.equal(out, alone)
    assert not any(kept.outputs for i in range(4) for kept in getattr(net, f"layer{i + 1}").shortcuts if kept)


def test_a_block_that_does_without_its_shortcut_is_an_error():
    net = dla.convert(TheirNet())
    net.layer1[0] = nn.Conv2d(16, 64, 1)
    with pytest.raises(RuntimeError, match="a block did not call its downsample, proj or shortcut"):
        net(torch.randn(2, 3, 16, 16))


def test_a_converted_stage_is_indexed_as_a_sequence_and_run_layer_by_layer():
    net = TheirNet().eval()
    last = net.layer4[-1]
    dla.convert(net)
    let_attention_speak(net)
    assert net.layer4[-1] is last
    assert len(net.layer4) == len(list(net.layer4)) == 2
    x = y = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        for layer in net.layer1:
            y = layer(y)
        assert torch.equal(net.layer1(x), y)
        assert torch.equal(net.layer1[:1](x), next(iter(net.layer1))(x))
    assert net.layer1[1:] == [net.layer1[1]]


def test_converted_networks_compile_and_copy():
    torch._dynamo.reset()
    net = dla.convert(TheirNet().eval()).eval()
    let_attention_speak(net)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(copy.deepcopy(net)(x), expected)
        torch.testing.assert_close(
            torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected, rtol=1e-4, atol=1e-5
        )
    fresh = dla.convert(TheirNet()).eval()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), expected)


def test_checkpoints_of_the_plain_network_and_of_an_older_converted_one_load():
    plain, net = TheirNet(), dla.convert(TheirNet())
    said = net.load_state_dict(plain.state_dict(), strict=False)
    assert said.unexpected_keys == [] and all(".attention." in name for name in said.missing_keys)
    assert all(torch.equal(p, dict(net.named_parameters())[name]) for name, p in plain.named_parameters())
    other = dla.convert(TheirNet())
    older = {re.sub(r"^(layer\d)\.(\d)", r"\1.layers.\2", name): x for name, x in other.state_dict().items()}
    assert "layer1.layers.0.conv1.weight" in older and "layer1.attention.layers.0.q" in older
    net.load_state_dict(older)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in other.state_dict().items())


def test_timms_layer_decay_finds_the_blocks_of_a_converted_network():
    scales = []
    for convert in (lambda net: net, dla.convert):
        groups = imported("timm.optim").param_groups_layer_decay(convert(timms()), layer_decay=0.5)
        scales.append({group["lr_scale"] for group in groups})
    assert scales[0] == scales[1] and len(scales[0]) > 8


def test_added_attention_has_the_dtype_and_mode_of_the_network():
    net = dla.convert(TheirNet().to(torch.float64).eval(), drop_path=0.1)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert not any(m.training for m in net.modules())
    assert net.layer1.attention.drop_path == 0.1


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"stages: expected names of modules .* Linear has no such 'layer1'"):
        dla.convert(nn.Linear(3, 3))
    net = TheirNet()
    with pytest.raises(ValueError, match=r"attention: expected one of dla_light, .*, got 'se'"):
        dla.convert(net, "se")
    assert isinstance(net.layer1, nn.Sequential)  # nothing was changed
    dla.convert(net)
    with pytest.raises(ValueError, match="model: expected one without layer attention, got one whose layer1"):
        dla.convert(net)


def test_a_copy_keeps_no_shortcut_of_a_block_called_by_itself():
    net = dla.convert(TheirNet())
    x = net.layer1(torch.randn(1, 16, 8, 8))
    net.layer2[0](x)
    again = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert [kept.outputs for kept in again.layer2.shortcuts if kept] == [{}]


def test_networks_of_this_package_are_refused():
    with pytest.raises(TypeError, match="ours have attention by name: see create_model"):
        dla.convert(dla.create_model("resnet18"))
