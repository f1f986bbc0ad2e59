"""Vision transformers with layer attention follow the published formulas, in the ops' own kernels."""

import copy
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dla_kernels as dla
from dla_kernels import reference
from dla_kernels.attention import Attention
from dla_kernels.models import VisionTransformer, to_published
from dla_kernels.models.registry import MODELS
from dla_kernels.nn import DLABaseTokens, DLALightTokens, InStages, MRLABaseTokens, MRLALightTokens

from . import published
from .clients import imported
from .tolerances import assert_equal_to_rounding

ATTENTIONS = ("mrla_light", "mrla_base", "dla_light", "dla_base")
C, LAYERS, SIZE = 24, 3, (3, 4)
KINDS = {
    "mrla_light": lambda **how: MRLALightTokens(C, LAYERS, head_channels=8, **how),
    "mrla_base": lambda **how: MRLABaseTokens(C, LAYERS, head_channels=8, **how),
    "dla_light": lambda **how: DLALightTokens(C, LAYERS, head_channels=8, **how),
    "dla_light_conv": lambda **how: DLALightTokens(C, LAYERS, head_channels=8, conv=True, **how),
    "dla_base": lambda **how: DLABaseTokens(C, LAYERS, "lstm", head_channels=8, **how),
}
SMALL = {"img_size": 16, "patch_size": 4, "num_classes": 5}


def small(attention, **options):
    """Return a transformer of six blocks, two of which are a stage that is not full."""
    how = {"attention": attention, "channels": 32, "depth": 6, "heads": 2, **SMALL, **options}
    return with_any_numbers(VisionTransformer(**how))


def with_any_numbers(net):
    for p in net.parameters():
        nn.init.normal_(p, 0.1, 0.3)
    return net


def tokens(prefix, size, layers=LAYERS, dtype=torch.float64):
    return [torch.randn(2, prefix + size[0] * size[1], C, dtype=dtype) for _ in range(layers + 1)]


def run(attention, made):
    """Return what the layers of a stage make of their inputs, which are tokens before and after each block."""
    out, memory = [], None
    for t in range(len(made) - 1):
        x, memory = attention(t, made[t + 1], made[t], memory)
        out.append(x)
    return torch.stack(out)


def normed(x, norm):
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-6)


def by_formula(attention, made, prefix, size):
    """Compute the same by the reference's steps, on maps that are NCHW in memory."""

    def to_map(x):
        return x[:, prefix:].mT.reshape(len(x), C, *size).contiguous()

    out, memory = [], None
    own = {"heads": attention.heads} | (
        {} if attention.cell is None else {"weights": attention.cell.weights, "cell": attention.cell.cell}
    )
    for t, layer in enumerate(attention.layers):
        before, x = made[t], made[t + 1]
        after = normed(x, layer.norm)
        filters = Attention(layer.q, layer.k, layer.v)
        if isinstance(attention, DLALightTokens):
            o_prev = to_map(normed(before, layer.norm_before))
            o, memory, _ = reference.light_step(
                to_map(after), o_prev, filters, layer.lam, state=memory, e=attention.e, act="gelu", **own
            )
        else:
            o, memory, _ = reference.base_step(to_map(after), memory, filters, **own)
        out.append(x + torch.cat([after[:, :prefix], o.flatten(2).mT], 1))
    return torch.stack(out)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_attention_between_tokens_follows_its_formula(name, prefix):
    attention = with_any_numbers(KINDS[name](prefix=prefix, size=SIZE).double())
    made = [x.requires_grad_() for x in tokens(prefix, SIZE)]
    out, expected = run(attention, made), by_formula(attention, made, prefix, SIZE)
    assert_equal_to_rounding([out], [expected], factor=100)
    leaves, do = [*made[name.endswith("base") :], *attention.parameters()], torch.randn_like(out)
    got, want = (torch.autograd.grad(x, leaves, do) for x in (out, expected))
    assert_equal_to_rounding(got, want, factor=100, together=True)


class Copies(TorchDispatchMode):
    """Counts tensors that are copied into another layout or dtype."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten._to_copy):
            self.found.append([x.shape for x in args if isinstance(x, torch.Tensor)])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", KINDS)
def test_tokens_go_through_the_ops_without_a_copy(name):
    """What comes from a norm, and what an op returns, are views of one memory."""
    attention = KINDS[name](size=SIZE)
    made = tokens(1, SIZE, dtype=torch.float32)
    with torch.no_grad(), Copies() as copies:
        run(attention, made)
    assert [shapes for shapes in copies.found if max(map(len, shapes)) > 2] == []
    normed = attention.layers[0].norm(made[0])
    as_map = dla.nn.tokens.to_map(normed[:, 1:], SIZE)
    assert as_map.data_ptr() == normed[:, 1:].data_ptr()
    value, _ = dla.depthwise(as_map, attention.layers[0].v)
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert dla.nn.tokens.to_tokens(value).data_ptr() == value.data_ptr()


def test_maps_of_tokens_are_square_unless_told():
    attention = MRLALightTokens(C, 1, head_channels=8)
    x = torch.randn(2, 1 + 9, C)
    assert attention(0, x, x)[0].shape == x.shape
    for wrong in (x[:, :-1], x[..., :-1], x[0], x[:, :1]):
        with pytest.raises(ValueError, match=r"x: expected tokens \[B, 1 \+ N, 24\], N a square number, got"):
            attention(0, wrong, wrong)
    with pytest.raises(ValueError, match=r"N 3 x 4, got \[2, 10, 24\]"):
        MRLALightTokens(C, 1, head_channels=8, size=SIZE)(0, x, x)
    with pytest.raises(ValueError, match="prefix, size: expected"):
        MRLALightTokens(C, 1, head_channels=8, size=(3, 0))


def test_stages_along_a_network_begin_anew():
    stages = InStages(MRLABaseTokens(C, layers, head_channels=8, size=SIZE) for layers in (2, 1)).double()
    made = tokens(1, SIZE)
    with torch.no_grad():
        expected = [run(stages[0], made[:3]), run(stages[1], made[2:])]
        torch.testing.assert_close(run(stages, made), torch.cat(expected), rtol=0, atol=0)
    with pytest.raises(IndexError, match="t: expected one of 3 layers, counted from 0, got 3"):
        stages(3, made[0], None, None)


# ---- networks ----


@pytest.mark.parametrize("attention", ("none", *ATTENTIONS))
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_transformer_has_a_name_and_the_parameters_of_its_parts(attention, size):
    """DeiT's tables give 5.7, 22 and 86 million without layer attention."""
    name = f"{'' if attention == 'none' else f'{attention}_'}deit_{size}"
    assert name in dla.list_models("*deit*")
    with torch.device("meta"):
        net = dla.create_model(name)
    width = net.num_features
    parts = sum(p.numel() for key, p in net.named_parameters() if ".attention." not in key)
    assert round(parts / 1e6, 1) == {"tiny": 5.7, "small": 22.1, "base": 86.6}[size]
    added = sum(p.numel() for p in net.parameters()) - parts
    K = dla.attention.filter_width(width)
    light = attention.endswith("light")
    expected = 12 * (2 * K + 9 * width + 2 * width + 3 * width * light)
    if attention == "none":
        expected = 0
    if attention.startswith("dla"):
        R, NG = width // 16, 3
        cell = 2 * (width * R + R + NG * width * R + NG * width)  # both bottlenecks of the released DSU
        expected += cell if light else 3 * cell
    assert added == expected


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_parameter_gets_a_finite_gradient(attention):
    net = small(attention)
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("attention", ["none", "mrla_light", "mrla_base"])
def test_networks_compute_what_the_published_formulas_say(attention):
    net = small(attention, head_channels=None if attention == "none" else 8).double().eval()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    state = net.state_dict() if attention == "none" else to_published(net)
    with torch.no_grad():
        assert_equal_to_rounding([net(x)], [published.vit(state, x, 4, heads=2, attention_heads=4)], factor=1000)


@pytest.mark.parametrize("attention", ["mrla_light", "mrla_base"])
def test_published_checkpoints_load_and_save(attention, tmp_path):
    net = small(attention, heads=3, channels=192)
    state = to_published(net)
    ends = {f"mrla.W{letter}.weight" for letter in "qkv"} | {f"norm{x}.{p}" for x in "xo" for p in ("weight", "bias")}
    ends = {end for end in ends | {"lambda_t"} if attention == "mrla_light" or end[:5] not in ("normo", "lambd")}
    assert {key for key in state if ".mrla." in key} == {f"blocks.{t}.mrla.{end}" for t in range(6) for end in ends}
    assert state["blocks.5.mrla.mrla.Wk.weight"].shape == (1, 1, 5)
    torch.save({"model": state}, tmp_path / "saved.pt")
    how = {"depth": 6, "img_size": 16, "patch_size": 4, "pretrained_path": tmp_path / "saved.pt"}
    again = dla.create_model(f"{attention}_deit_tiny", 5, **how)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    bare = dla.create_model(f"{attention}_deit_tiny", 7, pretrained_head=False, **how)
    assert torch.equal(bare.pos_embed, net.pos_embed) and bare.head.out_features == 7
    with pytest.raises(ValueError, match="checkpoint: expected a classifier of 7 classes, got one of 5"):
        dla.create_model(f"{attention}_deit_tiny", 7, **how)


def test_a_network_without_a_published_layout_is_refused():
    with pytest.raises(ValueError, match="net: expected one of create_model that the papers' code has too"):
        to_published(small("dla_light"))


def test_the_plain_network_is_timms():
    timm = imported("timm")
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).double().eval()
    ours = dla.create_model("deit_tiny", 5, img_size=32, depth=2).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_equal_to_rounding([ours(x)], [theirs(x)], factor=1000)


def test_layers_begin_anew_when_asked():
    attention = DLALightTokens(C, 1, head_channels=8)
    layer = with_any_numbers(attention).layers[0]
    layer.reset_parameters()
    for norm in (layer.norm, layer.norm_before):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_a_checkpoint_may_hold_the_options_of_its_run(tmp_path):
    net = dla.create_model("deit_tiny", 5, depth=1, img_size=32)
    torch.save({"model": net.state_dict(), "args": Namespace(lr=0.1)}, tmp_path / "saved.pt")
    again = dla.create_model("deit_tiny", 5, depth=1, img_size=32, pretrained_path=tmp_path / "saved.pt")
    assert torch.equal(again.pos_embed, net.pos_embed)


def test_drop_path_grows_along_the_blocks_and_drops_whole_samples():
    net = small("none", drop_path=0.5)
    assert [block.drop_path for block in net.blocks.blocks] == pytest.approx([0.1 * t for t in range(6)])
    block, x = net.blocks[5].train(), torch.randn(64, 17, 32)
    branches = block(x) - x
    dropped = branches.flatten(1).abs().amax(1) == 0
    assert 0 < dropped.sum() < 64  # by chance neither once in 10^8
    torch.testing.assert_close(block.eval()(x), small_without_drop(block)(x))


def small_without_drop(block):
    again = copy.deepcopy(block)
    again.drop_path = 0.0
    return again


def test_transformers_answer_to_timms_calls():
    net = dla.create_model("dla_light_deit_tiny", 7, in_chans=1, drop_path_rate=0.1, depth=2, img_size=32).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape == (2, 5, 192)
        assert net.forward_head(features, pre_logits=True).shape == (2, 192)
        assert net(x).shape == (2, 7)
    net.reset_classifier(3)
    assert net.get_classifier().out_features == net.num_classes == 3
    net.reset_classifier(0)
    assert net(x).shape == (2, 192)
    net.train().set_grad_checkpointing()
    net(x).sum().backward()
    assert net.blocks.attention.cell.w1y.grad.isfinite().all()
    assert net.no_weight_decay() <= {name for name, _ in net.named_parameters()}


def test_mistakes_are_explained():
    for how, message in (
        ({"img_size": (3, 16, 16)}, r"img_size, patch_size: expected a side or \(height, width\)"),
        ({"patch_size": 0}, r"img_size, patch_size: expected a side"),
        ({"img_size": 30}, r"img_size: expected multiples of the patch's 4, got 30 x 30"),
        ({"heads": 5}, r"heads that divide the 32 channels, got 6, 3, 5"),
        ({"drop_path": 1.0}, r"drop_path: expected a rate in \[0, 1\), got 1.0"),
        ({"attention": "se"}, r"attention: expected none or one of dla_light, .* between tokens, got 'se'"),
        ({"cell": "dsu"}, r"cell: expected None with attention='none'"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**{"attention": "none", **how})
    with pytest.raises(ValueError, match=r"x: expected images \[B, 3, 16, 16\], got \[1, 3, 24, 24\]; img_size= makes"):
        small("none")(torch.randn(1, 3, 24, 24))
    with pytest.raises(ValueError, match="channels: expected no such option, it is part of the name 'deit_tiny'"):
        dla.create_model("deit_tiny", channels=3)
    with pytest.raises(ValueError, match="features_only: expected False, transformers have no stages"):
        dla.create_model("deit_tiny", features_only=True)
    with pytest.raises(ValueError, match="global_pool: expected 'token'"):
        small("none").reset_classifier(3, "avg")


def test_networks_compile_export_and_trace():
    torch._dynamo.reset()
    net, x = small("dla_light", depth=2).eval(), torch.randn(2, 3, 16, 16)
    expected = net(x)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected)
    more = torch.cat([x, x])
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: torch.export.Dim("B")}})
        torch.testing.assert_close(program.module()(more), net(more))
    traced = torch.fx.symbolic_trace(net)
    assert [str(n.target) for n in traced.graph.nodes].count("blocks.attention") == 2
    torch.testing.assert_close(traced(more), net(more))


def test_square_maps_of_any_size_compile_once():
    torch._dynamo.reset()
    attention = MRLALightTokens(C, 1, head_channels=8)
    compiled = torch.compile(lambda x: attention(0, x, x)[0], fullgraph=True, backend="aot_eager", dynamic=True)
    for N in (16, 9):
        x = torch.randn(2, 1 + N, C)
        torch.testing.assert_close(compiled(x), attention(0, x, x)[0])


def test_all_names_are_of_one_list():
    assert len([name for name in MODELS if "deit" in name]) == 15
