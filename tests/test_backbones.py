"""Backbones beside plain ResNets, and the switches of the papers' ablations, as written down by themselves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dla_kernels as dla
from dla_kernels.models import ResNet
from dla_kernels.models.blocks import BasicBlock, Bottleneck, Options, PreBottleneck, WideBlock
from dla_kernels.models.params import count, flops
from dla_kernels.nn import CBAM, SE, CellModule, LayerwiseIntegration, Shared, recalibration
from dla_kernels.nn.recalibration import NormOfLayer

from .clients import imported
from .tolerances import assert_same_bits


def small(block=Bottleneck, depths=(2, 2), **options):
    torch.manual_seed(1)
    net = ResNet(depths, block, width=8, **options).eval().double()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
    return net


IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def head(net, x):
    return net.fc(x.mean((2, 3)))


# ---- blocks that begin with norms ----


def pre_activated(net, x):
    x = net.conv1(x)
    for stage in net.stages:
        for block in stage.blocks:
            out = block.conv1(block.bn1(x).relu())
            out = block.conv2(block.bn2(out).relu())
            out = block.conv3(block.bn3(out).relu())
            x = out + (x if block.downsample is None else block.downsample(x))
    return head(net, net.last_bn(x).relu())


def wide(net, x):
    x = net.conv1(x)
    for stage in net.stages:
        for block in stage.blocks:
            before = block.bn1(x).relu()
            out = block.conv2(block.bn2(block.conv1(before)).relu())
            x = out + (x if block.downsample is None else block.downsample(before))
    return head(net, net.last_bn(x).relu())


@pytest.mark.parametrize(("block", "formula"), [(PreBottleneck, pre_activated), (WideBlock, wide)])
def test_pre_activated_networks_follow_their_formula(block, formula):
    net = small(block, stem=4)
    torch.testing.assert_close(net(IMAGES), formula(net, IMAGES))
    assert net.bn1 is None and net.conv1.out_channels == 4
    features = small(block, features_only=True)(IMAGES)
    assert [x.shape[1] for x in features] == [8 * block.expansion, 16 * block.expansion]


def test_behind_a_cell_wide_blocks_end_in_a_norm_and_the_sum_in_no_relu():
    net = small(WideBlock, attention="dia", dropout=0.3)
    block = net.layer1[0]
    assert block.dropout.p == 0.3 and small(WideBlock).layer1[0].bn3 is None
    x = net.conv1(IMAGES)
    a, shortcut = block(x)
    assert torch.equal(a, block.bn3(block.conv2(block.bn2(block.conv1(block.bn1(x).relu())).relu())))
    out, state = net.layer1.layer(0, x, None)
    torch.testing.assert_close(out, shortcut + a * net.layer1.attention.cell.output(state)[:, :, None, None])
    assert out.min() < 0


# ---- groups and dilation ----


def test_groups_are_those_of_resnext():
    block = Bottleneck(64, 64, options=Options(groups=32, width_per_group=4))
    assert (block.conv2.in_channels, block.conv2.groups) == (128, 32)
    assert count("resnext50_32x4d", 1000) == 25_028_904  # as torchvision's
    assert count("resnet50", 1000, width_per_group=128) == 68_883_240  # wide_resnet50_2
    assert count("resnet152", 1000) == 60_192_808


def test_dilation_keeps_the_size_of_maps():
    net = ResNet((1, 2, 2, 2), imagenet=True, replace_stride_with_dilation=(False, True, True), features_only=True)
    maps = net.eval()(torch.randn(1, 3, 64, 64))
    assert net.strides == [4, 8, 8, 8]
    assert [64 // x.shape[2] for x in maps] == net.strides
    dilations = [[block.conv2.dilation[0] for block in stage.blocks] for stage in net.stages]
    assert dilations == [[1], [1, 1], [1, 2], [2, 4]]


def test_dilated_networks_are_torchvisions():
    models = imported("torchvision.models")
    how = {"replace_stride_with_dilation": [False, True, True]}
    theirs = models.resnet50(**how).eval()
    ours = dla.create_model("resnet50", **how).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


# ---- switches ----


def test_stages_may_differ_in_their_attention():
    net = dla.create_model("resnet20", attention=("dia", "none", "shared_cbam"))
    kinds = [type(stage.attention) for stage in net.stages]
    assert kinds == [LayerwiseIntegration, type(None), Shared]
    assert isinstance(net.layer3.attention.module, CBAM)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    with pytest.raises(ValueError, match="attention: expected one, or one for each of 3 stages, got 2"):
        dla.create_model("resnet20", attention=("dia", "none"))


@pytest.mark.parametrize("block", [Bottleneck, PreBottleneck])
@pytest.mark.parametrize("attention", ["none", "se", "dia", "shared_se", "dla_light"])
def test_without_shortcuts_nothing_is_added(attention, block):
    net = small(block, depths=(2,), attention=attention, skip=False)
    stage, x = net.layer1, net.conv1(IMAGES) if net.bn1 is None else net.bn1(net.conv1(IMAGES)).relu()
    a, shortcut = stage[0](x)
    last = F.relu if block.ends_in_relu else lambda x: x
    out, memory = stage.layer(0, x, None)
    if attention == "none":
        expected = last(a)
    elif attention == "dia":
        expected = last(a * stage.attention.cell.output(memory)[:, :, None, None])
    elif attention == "dla_light":
        expected, _ = stage.attention(0, last(a), shortcut, None)
    else:
        module = stage[0].recalibrate if attention == "se" else stage.attention.module
        expected = last(a * module.gate(a)[:, :, None, None])
    torch.testing.assert_close(out, expected)


def test_without_norms_there_are_none_and_the_convolutions_have_no_biases():
    net = small(norm="none", attention="dia")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))
    net(IMAGES).sum().backward()
    assert ResNet((1,), imagenet=True, norm="none", width=8)(torch.randn(2, 3, 32, 32)).isfinite().all()
    for wrong, said in (
        ({"norm": "layer"}, "norm: expected batch or none"),
        ({"norm": "none"}, "norm_layer: expected"),
    ):
        with pytest.raises(ValueError, match=said):
            ResNet((1,), norm_layer=nn.BatchNorm2d, **wrong)


def test_another_norm_takes_the_place_of_batch_norm():
    net = small(norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert sum(isinstance(m, nn.GroupNorm) for m in net.modules()) == 1 + 3 * 4 + 2
    assert net(IMAGES).isfinite().all()


@pytest.mark.parametrize("start", ["zeros", "random", "learned"])
def test_a_cell_may_start_elsewhere(start):
    net = small(attention="dia", start=start)
    assert [cell.start for cell in net.modules() if isinstance(cell, CellModule)] == [start] * 2
    assert ("layer1.attention.cell.memory0" in net.state_dict()) == (start != "zeros")
    with pytest.raises(ValueError, match="start: expected None with attention='dla_light'"):
        small(attention="dla_light", start=start)


@pytest.mark.parametrize("attention", ["dia", "dla_light", "shared_srm", "none"])
def test_blocks_may_have_attention_of_their_own_too(attention):
    net = small(attention=attention, inside="se")
    assert all(isinstance(block.recalibrate, SE) for stage in net.stages for block in stage.blocks)
    x = net.bn1(net.conv1(IMAGES)).relu()
    a, shortcut = net.layer1[0](x)
    a = net.layer1[0].recalibrate(a)
    out, memory = net.layer1.layer(0, x, None)
    attend = net.layer1.attention
    expected = {
        "none": lambda: (shortcut + a).relu(),
        "dia": lambda: (shortcut + a * attend.cell.output(memory)[:, :, None, None]).relu(),
        "dla_light": lambda: attend(0, (shortcut + a).relu(), shortcut, None)[0],
        "shared_srm": lambda: (shortcut + a * attend.module.gate(a)[:, :, None, None]).relu(),
    }[attention]
    torch.testing.assert_close(out, expected())
    with pytest.raises(ValueError, match="inside: expected None with attention='eca', got 'se'; it has no room"):
        small(attention="eca", inside="se")


def test_a_stage_shares_its_attention_but_not_the_norms_inside():
    net = small(attention="shared_srm")
    (norms,) = (m for m in net.layer1.modules() if isinstance(m, NormOfLayer))
    assert len(norms) == 2
    assert sum(p.numel() for p in net.layer1.attention.parameters()) == 2 * 32 + 2 * 2 * 32


def test_basic_blocks_refuse_what_only_bottlenecks_have():
    for wrong in ({"groups": 2}, {"width_per_group": 32}, {"replace_stride_with_dilation": (True,)}):
        with pytest.raises(ValueError, match="expected none with basic blocks"):
            small(BasicBlock, **wrong)
    with pytest.raises(ValueError, match="replace_stride_with_dilation: expected 1 flags, got 3"):
        small(replace_stride_with_dilation=(True,) * 3)


def test_operations_are_those_that_torch_counts():
    assert round(flops("resnet50", 1000) / 1e9, 2) == 8.18  # 4.09 G multiplications with an addition each
    assert flops("dia_resnet20", 10) > flops("resnet20", 10)


# ---- for detection ----


@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
def test_frozen_stages_are_neither_trained_nor_in_training(frozen):
    net = ResNet((2, 2), width=8, attention="dla_light", frozen_stages=frozen)
    expected = [] if frozen is None else ["conv1", "bn1", "layer1", "layer2"][: 2 + frozen]
    for module in (net, net.eval().train()):
        for name, child in module.named_children():
            parameters = [*child.parameters()]
            if parameters and name != "fc":
                assert {p.requires_grad for p in parameters} == {name not in expected}, name
                assert child.training == (name not in expected), name
    x = torch.randn(2, 3, 8, 8)
    before = net.bn1.running_mean.clone()
    net(x).sum().backward()
    assert torch.equal(net.bn1.running_mean, before) == (frozen is not None)
    with pytest.raises(ValueError, match="frozen_stages: expected None or from 0 to 2, got 3"):
        ResNet((2, 2), width=8, frozen_stages=3)


def test_norms_may_keep_their_statistics_in_training():
    net = ResNet((2,), width=8, attention="dla_light", norm_eval=True).train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert net.training and not any(norm.training for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before))
    assert all(norm.weight.grad is not None for norm in norms)


# ---- inference ----


@pytest.mark.parametrize("cell", [dla.Cell("dia"), dla.Cell("dia", projection="light")], ids=["dia", "light"])
def test_without_gradients_blocks_write_over_their_shortcuts_and_nothing_else(cell, monkeypatch):
    """The second block's shortcut is the first's output, which nobody else reads; the first's is its caller's."""
    net = small(BasicBlock, (3,), stem=8, attention="dia", cell=cell)
    x, asked = torch.randn(2, 8, 6, 6, dtype=torch.float64), []
    real = recalibration.recalibrate

    def recalibrate(*args, **how):
        asked.append(how.get("inplace", False))
        return real(*args, **how)

    monkeypatch.setattr(recalibration, "recalibrate", recalibrate)
    stage, given = net.layer1, x.clone()
    expected = stage(given).detach()
    with torch.no_grad():
        assert_same_bits(stage(given), expected)
    assert_same_bits(given, x)
    assert asked == 3 * [False] + [False, True, True]
    compiled = torch.compile(stage, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ("looks_at", "what"),
    [
        (lambda stage: stage[1], lambda args, made: made[1]),
        (lambda stage: stage[1].conv1, lambda args, made: args[0]),
        (lambda stage: stage.attention, lambda args, made: made[0]),
    ],
    ids=["block", "convolution", "attention"],
)
def test_who_looks_at_a_map_keeps_what_it_saw(looks_at, what):
    net, kept = small(depths=(3,), attention="dia"), []

    def keep(module, args, made):
        kept.append((what(args, made), what(args, made).clone()))

    looks_at(net.layer1).register_forward_hook(keep)
    with torch.inference_mode():
        net(IMAGES)
    for now, then in kept:
        assert_same_bits(now, then)


def test_a_trace_writes_over_nothing():
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(small(depths=(3,), attention="dia"))
    calls = [node for node in traced.graph.nodes if str(node.target) == "layer1.attention"]
    assert [node.kwargs["inplace"] for node in calls] == 3 * [False]


def test_a_block_that_does_nothing_is_not_written_over():
    net = small(depths=(2,), attention="dia")
    net.layer1[1].branch = lambda x: x
    expected = net(IMAGES).detach()
    with torch.no_grad():
        assert_same_bits(net(IMAGES), expected)
