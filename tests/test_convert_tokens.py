"""``convert`` gives layer attention to others' vision transformers, and finds the stages of networks that it knows."""

import pytest
import torch
from torch import nn

import dla_kernels as dla
from dla_kernels.models.stage import Stage
from dla_kernels.nn import InStages

from .clients import imported
from .test_transformers import ATTENTIONS, SIZE, C, small, with_any_numbers
from .tolerances import assert_equal_to_rounding


class Mixed(nn.Module):
    """A block between tokens."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x):
        return x + self.fc(self.norm(x))


class TheirTransformer(nn.Module):
    """A transformer written as timm's: a convolution, a class token, a sequence of blocks."""

    def __init__(self, prefix=1, size=SIZE, told=True):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, C, 2, 2)
        if told:
            self.num_prefix_tokens = prefix
            self.patch_embed.grid_size, self.patch_embed.img_size = size, (2 * size[0], 2 * size[1])
        self.first = nn.Parameter(torch.randn(1, prefix, C))
        self.blocks = nn.Sequential(*(Mixed(C) for _ in range(5)))

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).mT
        return self.blocks(torch.cat([self.first.expand(len(x), -1, -1), x], 1))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_a_transformer_can_be_converted_and_computes_as_before_until_it_is_trained(attention, prefix):
    net, x = TheirTransformer(prefix), torch.randn(2, 3, 6, 8)
    expected = net(x)
    converted = dla.convert(net, attention=attention)
    assert converted is net
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    added = net.blocks.attention
    for stage in added if isinstance(added, InStages) else [added]:
        assert (stage.prefix, stage.size, stage.channels) == (prefix, SIZE, C)
    assert sum(len(stage.layers) for stage in (added if isinstance(added, InStages) else [added])) == 5
    net(x).square().sum().backward()
    norms = [p for name, p in net.named_parameters() if name.endswith(".norm.weight") and ".attention." in name]
    assert all(p.grad.abs().max() > 0 for p in norms)
    with torch.no_grad():
        for p in norms:
            p.fill_(0.5)
    assert (net(x) - expected).abs().max() > 1e-3


def test_a_square_map_behind_few_tokens_is_found_without_being_told():
    net = dla.convert(TheirTransformer(2, (4, 4), told=False), example=torch.randn(1, 3, 8, 8))
    assert (net.blocks.attention.prefix, net.blocks.attention.size) == (2, (4, 4))
    for prefix, size in ((3, (4, 4)), (1, (3, 4)), (0, (2, 8))):
        with pytest.raises(ValueError, match="stages: expected tokens of blocks to be a map's pixels"):
            example = torch.randn(1, 3, 2 * size[0], 2 * size[1])
            dla.convert(TheirTransformer(prefix, size, told=False), example=example)


def test_the_map_of_tokens_is_that_of_the_example():
    net = TheirTransformer(1)
    net.patch_embed.patch_size = (2, 2)
    dla.convert(net, example=torch.randn(1, 3, 12, 4))  # as many pixels as it has otherwise, and a multiple
    assert net.blocks.attention.size == (6, 2)
    net = TheirTransformer(1)
    net.num_prefix_tokens = 2
    with pytest.raises(ValueError, match=r"as a square image has them, got \[1, 13, 24\]"):
        dla.convert(net)


class Sequences(nn.Module):
    """A block of sequences [B, C, L], or of what else has three axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(16, 16, 1)

    def forward(self, x):
        return self.conv(x)


def test_what_is_no_token_is_refused():
    net = nn.Sequential(nn.Identity(), nn.Sequential(Sequences(), Sequences()))
    with pytest.raises(ValueError, match=r"got \[1, 16, 25\], which has no such C"):
        dla.convert(net, stages=["1"], example=torch.randn(1, 16, 25))
    text = nn.Sequential(nn.Identity(), nn.Sequential(Mixed(C), Mixed(C)))
    with pytest.raises(ValueError, match="stages: expected tokens of 1 to be a map's pixels"):
        dla.convert(text, stages=["1"], example=torch.randn(1, 256, C))
    dropping = TheirTransformer()
    dropping.patch_drop = nn.Dropout()
    with pytest.raises(ValueError, match="model: expected all tokens in training too, got one with patch_drop"):
        dla.convert(dropping)


def test_timm_takes_what_is_between_the_blocks_of_a_converted_transformer():
    timm = imported("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=5).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    dla.convert(net, "dla_light")
    with_any_numbers(net)
    expected, tokens, memory = [], net._pos_embed(net.patch_embed(x)), None
    stage = net.blocks
    for t in range(5):
        tokens, memory = stage.layer(t, tokens, memory)
        expected.append(tokens[:, 1:])
    for stop_early in (False, True):
        found = net.forward_intermediates(
            x, indices=[0, 3], intermediates_only=True, output_fmt="NLC", stop_early=stop_early
        )
        torch.testing.assert_close(found, [expected[0], expected[3]])
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))
    net.prune_intermediate_layers([0, 1])
    assert len(net.blocks) == 2
    torch.testing.assert_close(net.blocks(net._pos_embed(net.patch_embed(x)))[:, 1:], expected[1])


@pytest.mark.parametrize("attention", ["dla_light", "dla_base"])
def test_a_converted_transformer_that_is_checkpointed_has_the_same_gradients(attention):
    timm = imported("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=5).double()
    dla.convert(net, attention)
    with_any_numbers(net)
    x, grads = torch.randn(2, 3, 32, 32, dtype=torch.float64), []
    for checkpointed in (False, True):
        net.set_grad_checkpointing(checkpointed)
        grads.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
    assert_equal_to_rounding(*grads, factor=1000, together=True)
    steps = list(net.blocks)
    tokens = net._pos_embed(net.patch_embed(x))
    with pytest.raises(RuntimeError, match="expected checkpoints with use_reentrant=False"):
        torch.utils.checkpoint.checkpoint(steps[0], tokens, use_reentrant=True)


def test_nothing_is_dropped_between_tokens():
    with pytest.raises(ValueError, match=r"drop_path: expected 0 between tokens, where nothing is dropped, got 0\.1"):
        dla.convert(TheirTransformer(), drop_path=0.1)
    with pytest.raises(TypeError, match="ours have attention by name"):
        dla.convert(small("none"))


# Networks of timm's and torchvision's, as small as they come, and what is refused and why.
OTHERS = [
    "timm/deit_tiny_distilled_patch16_224",
    "timm/vit_tiny_patch16_224",
    "timm/convnext_atto",
    "timm/regnetx_002",
    "timm/resnet26d",
    "timm/seresnet18",
    "timm/resnext26ts",
    "timm/resnetv2_18",
    "torchvision/regnet_x_400mf",
    "torchvision/convnext_tiny",
    "torchvision/resnext50_32x4d",
    "torchvision/vit_b_32",
]
REFUSED = {
    "timm/swin_tiny_patch4_window7_224": "it has layers, layers.0.blocks",
    "timm/efficientnet_b0": "has no such 'layer1'; it has blocks",
    "timm/samvit_base_patch16": "whose channels seem last",
    "timm/hrnet_w18_small": "has no such 'layer2'",
    "torchvision/swin_t": "has no such 'layer1'",
}


def of_theirs(name):
    home, _, name = name.partition("/")
    if home == "timm":
        return imported("timm").create_model(name)
    return getattr(imported("torchvision.models"), name)()


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_others_have_their_stages_found(name):
    net = of_theirs(name)
    before = {key: p.shape for key, p in net.state_dict().items()}
    dla.convert(net, attention="dla_base")
    after = {key: p.shape for key, p in net.state_dict().items()}
    assert {key: shape for key, shape in after.items() if ".attention." not in key} == before
    layers = [m for m in net.modules() if isinstance(m, dla.nn.attention.AttentionLayer)]
    stages = [m for m in net.modules() if isinstance(m, Stage)]
    assert len(layers) == sum(map(len, stages)) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_such_stages_are_refused(name):
    with pytest.raises((ValueError, TypeError), match=REFUSED[name]):
        dla.convert(of_theirs(name))
