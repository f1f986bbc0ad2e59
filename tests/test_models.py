"""The networks have the sizes, formulas and checkpoints of the published ones, and can be used as networks are."""

import copy
import re

import pytest
import torch
from torch import nn

import dla_kernels as dla
from dla_kernels.models import ATTENTIONS, ResNet, from_published, to_published
from dla_kernels.models.blocks import Block, Bottleneck, PreBottleneck
from dla_kernels.models.params import TABLE, count, met, parameter_table
from dla_kernels.models.registry import BACKBONES, MODELS, TRANSFORMERS, load

from . import published
from .clients import imported
from .tolerances import assert_equal_to_rounding

SMALL = {"depths": (2, 2), "block": Bottleneck}  # as the CIFAR networks, but small


def small(attention="dla_light", **options):
    torch.manual_seed(1)
    return ResNet(**SMALL, attention=attention, **options)


def with_any_numbers(net):
    """Return the network with numbers such as trained ones have: no norm does nothing."""
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return net


# ---- sizes ----


def test_parameter_counts_are_those_of_the_paper():
    assert len(TABLE) == 64
    for row, counts in parameter_table():
        assert counts.keys() == row.published.keys()
        off = [num_classes for num_classes, ours in counts.items() if not met(row, num_classes, ours)]
        assert len(off) == (row.off != ""), row  # a figure that is not met has a reason
    row = TABLE[0]
    assert not met(row, 10, 230_000) and not met(row, 10, 214_000) and met(row, 10, 215_100)


def test_parameter_counts_are_those_of_the_published_code():
    millions = [round(count(f"dla_light_resnet{depth}", 100) / 1e6, 3) for depth in (20, 56, 110)]
    assert millions == [0.433, 0.826, 1.415]
    assert [round(count(f"dla_base_resnet{depth}", 100) / 1e6, 3) for depth in (20, 56, 110)] == [0.428, 0.819, 1.405]
    assert round(count("dla_light_resnet50", 1000) / 1e6, 2) == 28.58


# ---- the registry ----


def test_models_are_listed_and_made_by_name():
    assert len(MODELS) == len(ATTENTIONS) * len(BACKBONES) + 5 * len(TRANSFORMERS) == 19 * 17 + 5 * 3
    assert dla.list_models("dla*50") == ["dla_light_resnet50", "dla_base_resnet50"]
    assert {"dia_wrn52_4", "dia_resnext101_8x32", "dia_light_resnet164", "shared_cbam_resnet164"} <= {
        *dla.list_models()
    }
    assert "resnet20" in dla.list_models()
    with pytest.raises(ValueError, match=r"such as .*dla_light_resnet20.*, got 'dla_heavy_resnet20'"):
        dla.create_model("dla_heavy_resnet20")


NAMES = [name for name in MODELS if name.endswith(("resnet20", "_resnet18")) or name in BACKBONES]
NAMES += [f"{attention}_{backbone}" for attention in ("dia", "dla_light") for backbone in BACKBONES]


@pytest.mark.parametrize("name", dict.fromkeys(NAMES))
def test_every_network_can_be_built(name):
    with torch.device("meta"):
        net = dla.create_model(name, num_classes=7)
    depth = int(re.search(r"(?:net|next|wrn)(\d+)", name)[1])
    blocks = [m for m in net.modules() if isinstance(m, Block)]
    layers = sum(3 if isinstance(m, (Bottleneck, PreBottleneck)) else 2 for m in blocks)
    others = 4 if "wrn" in name else 2  # its shortcuts are counted, of which it has three
    assert layers + others == depth
    assert net.fc.out_features == 7


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("depth", [20, 18])
def test_every_parameter_gets_a_finite_gradient(attention, depth):
    net = dla.create_model(f"{attention}_resnet{depth}".removeprefix("none_"), num_classes=5, in_channels=1)
    x = torch.randn(2, 1, 32, 32)
    net(x).sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


@pytest.mark.parametrize("cell", ["rnn", "lstm", "dia", "dsu", dla.PAPER_DSU])
@pytest.mark.parametrize("attention", ["dia", "dla_light", "dla_base"])
def test_a_network_takes_any_cell(attention, cell):
    net = small(attention, cell=cell, reduction=8)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    cells = [m for m in net.modules() if isinstance(m, dla.nn.CellModule)]
    kind = cell if isinstance(cell, str) else cell.kind
    assert len(cells) == 2
    assert {c.cell.kind for c in cells} == {kind}
    assert all(p.grad is not None for c in cells for p in c.parameters())


def test_features_only_gives_the_maps_of_the_stages():
    net = dla.create_model("dla_light_resnet50", features_only=True)
    with torch.no_grad():
        maps = net.eval()(torch.randn(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == net.channels == [256, 512, 1024, 2048]
    assert [64 // m.shape[2] for m in maps] == [96 // m.shape[3] for m in maps] == net.strides == [4, 8, 16, 32]
    assert not any(key.startswith("fc.") for key in net.state_dict())


def test_out_indices_choose_the_maps_and_their_channels():
    net = dla.create_model("dla_light_resnet18", features_only=True, out_indices=(3, 1))
    with torch.no_grad():
        maps = net.eval()(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == net.channels == [128, 512]
    assert [64 // m.shape[2] for m in maps] == net.strides == [8, 32]


def test_networks_answer_to_timms_calls():
    net = dla.create_model("dla_light_resnet20", num_classes=7, in_chans=1, drop_path_rate=0.2).eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape == (2, net.num_features, 4, 4)
        assert torch.equal(net.forward_head(features), net(x))
        assert torch.equal(net.forward_head(features, pre_logits=True), features.mean((2, 3)))
        assert net.get_classifier() is net.fc and net.num_classes == 7
        assert net.stages[0].attention.drop_path == 0.2
        net.reset_classifier(3)
        assert net(x).shape == (2, 3) and net.num_classes == 3
        net.reset_classifier(0)
        assert torch.equal(net(x), features.mean((2, 3)))
    bare = dla.create_model("dla_light_resnet20", num_classes=0)
    assert not any(name.startswith("fc.") for name in bare.state_dict())


@pytest.mark.parametrize("attention", ["none", "dia", "dla_light", "dla_base"])
def test_checkpointing_keeps_less_and_changes_no_gradient(attention):
    net, x = with_any_numbers(small(attention)).eval(), torch.randn(2, 3, 8, 8)  # a norm in training would move twice
    kept, grads = [], []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.numel()) or t, lambda t: t):
            out = net(x)
        grads.append(torch.autograd.grad(out.square().sum(), list(net.parameters())))
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert kept[1] < kept[0] / 2


def test_a_checkpoint_with_other_classes_says_so_and_loads_without_its_head(tmp_path):
    theirs = dla.create_model("dla_light_resnet20", num_classes=5)
    for state in (theirs.state_dict(), to_published(theirs)):
        torch.save(state, tmp_path / "weights.pt")
        how = {"pretrained_path": tmp_path / "weights.pt"}
        with pytest.raises(ValueError, match=r"a classifier of 10 classes, got one of 5; pretrained_head=False"):
            dla.create_model("dla_light_resnet20", **how)
        ours = dla.create_model("dla_light_resnet20", **how, pretrained_head=False)
        assert torch.equal(ours.conv1.weight, theirs.conv1.weight) and ours.fc.out_features == 10
        bare = dla.create_model("dla_light_resnet20", num_classes=0, **how)
        assert torch.equal(bare.conv1.weight, theirs.conv1.weight)


def test_timm_makes_our_networks_by_name():
    timm = imported("timm")
    own = timm.create_model("resnet18")
    names = dla.register_timm()
    assert names == dla.register_timm() and "resnet50" not in names
    assert [name for name in dla.list_models("*dla*") if not timm.is_model(name)] == []
    assert type(timm.create_model("resnet18")) is type(own), "timm's networks stay its own"
    net = timm.create_model("dla_light_resnet18", num_classes=4, in_chans=1, drop_rate=0.0, drop_path_rate=0.1)
    assert isinstance(net, ResNet) and net(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    maps = timm.create_model("dla_light_resnet18", features_only=True, out_indices=(1, 2))
    assert [m.shape[1] for m in maps(torch.randn(2, 3, 32, 32))] == [128, 256]
    with pytest.raises(ValueError, match="drop_rate: expected 0"):
        timm.create_model("dla_light_resnet18", drop_rate=0.1)


def test_imagenet_branches_begin_at_zero():
    net = dla.create_model("resnet18")
    assert all((block.last_norm.weight == 0).all() for stage in net.stages for block in stage.blocks)


def test_convolutions_begin_as_published():
    """They are normal by their fan-out, those of layer attention too, as all 3x3 ones in the published code."""
    attention = dla.create_model("dla_light_resnet56").stages[2].attention
    for filters in (attention.e, attention.layers[0].v):
        assert filters.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_networks_run_in_bfloat16(attention):
    net = small(attention).bfloat16()
    out = net(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("attention", ["eca", "dla_light", "dla_base"])
def test_every_parameter_is_reset_by_some_module(attention):
    """Whoever builds a network on the meta device and fills it later needs this."""
    with torch.device("meta"):
        net = small(attention)
    net.to_empty(device="cpu")
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(123.0)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert [name for name, p in net.named_parameters() if (p == 123).any()] == []


def test_a_stage_of_one_layer_has_no_idle_parameters():
    net = ResNet((1, 2), attention="dla_base")
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="num_classes: expected a number of classes, or 0 for none, got -1"):
        small(num_classes=-1)
    with pytest.raises(ValueError, match="out_indices: expected None without features_only=True"):
        small(out_indices=[0])
    for wrong in ([], [0, 2], [-3], 3, 0):
        with pytest.raises(ValueError, match=r"out_indices: expected some of \[0, 1\], got"):
            small(out_indices=wrong, features_only=True)
    with pytest.raises(ValueError, match="pretrained: expected False, there are no weights to download"):
        dla.create_model("resnet20", pretrained=True)
    with pytest.raises(TypeError, match="in_chans: expected it or in_channels, which says the same, got both"):
        dla.create_model("resnet20", in_chans=1, in_channels=1)
    with pytest.raises(ValueError, match="width, stem: expected at least 1 channel each, got 0, 0"):
        dla.create_model("dla_light_resnet20", width=0)
    with pytest.raises(ValueError, match="channels, reduction: expected at least 1, got 64, 0"):
        small(reduction=0)
    with pytest.raises(TypeError, match=r"checkpoint: expected a state dict, .*, got list"):
        load(small(), [1, 2])
    with pytest.raises(ValueError, match=r"attention: expected one of none, .*, got 'cmab'"):
        small("cmab")
    with pytest.raises(ValueError, match="cell: expected None with attention='se', got 'lstm'"):
        small("se", cell="lstm")
    for attention, option in (("eca", "reduction"), ("mrla_light", "reduction"), ("se", "head_channels")):
        with pytest.raises(ValueError, match=f"{option}: expected None with attention='{attention}', got 8"):
            small(attention, **{option: 8})
    with pytest.raises(ValueError, match=r"drop_path: expected None with attention='dia', got 0.1; it has no branch"):
        small("dia", drop_path=0.1)
    for wrong in (24, 33, 32.0, 0):
        with pytest.raises(ValueError, match=rf"head_channels: expected a divisor of the 64 channels, got {wrong}"):
            small("dla_light", head_channels=wrong)
    with pytest.raises(ValueError, match=r"backend: expected None or one of reference, cpu, cuda, triton, got 'gpu'"):
        small(backend="gpu")
    with pytest.raises(TypeError, match=r"cell: expected a dla_kernels.Cell or the name of a kind, got CellModule"):
        small("dla_light", cell=dla.nn.make_cell("lstm", 64))
    with pytest.raises(ValueError, match=r"attention: expected no such option, it is part of the name 'eca_resnet20'"):
        dla.create_model("eca_resnet20", attention="se")
    with pytest.raises(TypeError, match=r"options: expected some of num_classes, in_channels, .*, got 'in_chan'"):
        dla.create_model("resnet20", in_chan=1)
    with pytest.raises(ValueError, match=r"such as dla_light_resnet20, .*, got 'dla_ligth_resnet20'"):
        dla.create_model("dla_ligth_resnet20")


def test_reduction_sets_the_width_of_se():
    narrow, usual = small("se", reduction=64), small("se")
    assert narrow.layer1[0].recalibrate.squeeze.out_features == 1
    assert usual.layer1[0].recalibrate.squeeze.out_features == 4


# ---- results ----


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_kernels_and_reference_make_the_same_network(attention):
    ours = with_any_numbers(small(attention)).double()
    theirs = small(attention, backend="reference").double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    out, expected = ours(x), theirs(x)
    assert_equal_to_rounding([out], [expected], factor=1000)
    out.square().sum().backward(), expected.square().sum().backward()
    grads = [[p.grad for p in net.parameters()] for net in (ours, theirs)]
    assert_equal_to_rounding(*grads, factor=10000, together=True)
    assert_equal_to_rounding(list(ours.buffers()), list(theirs.buffers()), factor=1000)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_sample_does_not_depend_on_its_neighbours(attention):
    """The published code fails here: it refreshes all samples by the state of the first."""
    net = with_any_numbers(small(attention)).eval()
    x = torch.randn(5, 3, 8, 8)
    order = torch.randperm(5)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[order], net(x[order]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-5, atol=1e-6)


# ---- checkpoints ----

LAYOUTS = {
    "dla_light_resnet20": r"(conv1|bn1|fc)\.\w+|stages\.[012]\.(layers\.[01]\.(conv[123]|bn[123]|downsample\.[01])\.\w+"
    r"|attention\.[01]\.(layer_attention\.(lambda_t|layer_attention\.W[qkv]\.weight)|bn_layer_attention\.\w+)"
    r"|lstm\.w_[ih]h\.0\.seq\.[02]\.(weight|bias)|excite\.weight)",
    "dla_base_resnet20": r"(conv1|bn1|fc)\.\w+|stages\.[012]\.(layers\.[01]\.(conv[123]|bn[123]|downsample\.[01])\.\w+"
    r"|attention\.[01]\.(layer_attention\.layer_attention\.W[qkv]\.weight|bn_layer_attention\.\w+)"
    r"|lstm\.w_[ih]h\.0\.seq\.[02]\.(weight|bias))",
    "dla_light_resnet50": r"(conv1|bn1|fc)\.\w+|layer[1234]\.(layers\.\d\.(conv[123]|bn[123]|downsample\.[01])\.\w+"
    r"|attention\.\d\.(layer_attention\.(lambda_t|mrla\.W[qkv]\.weight)|bn_layer_attention\.\w+)"
    r"|lstm\.w_[ih]h\.0\.seq\.[02]\.(weight|bias)|extict\.weight)",
}


BLOCK = r"(conv[123]|bn[123]|downsample\.[01])\.\w+"
CELL = r"lstm\.w_[ih]h\.0\.seq\.[02]\.(weight|bias)"
OTHERS = {
    "mrla_light_resnet50": r"(conv1|bn1|fc)\.\w+|"
    rf"layer[1234]\.\d\.({BLOCK}|mrla\.(lambda_t|mrla\.W[qkv]\.weight)|bn_mrla\.\w+)",
    "mrla_base_resnet50": r"(conv1\.[01346]|bn1|fc)\.\w+|"
    rf"stages\.[0123]\.\d\.({BLOCK}|mrla\.mrla\.W[qkv]\.weight|bn_mrla\.\w+)",
    "dia_resnet20": rf"(conv1|bn1|fc)\.\w+|layer[123]\.(ModuleList\.\d\.{BLOCK}|{CELL})",
    "dia_preresnet164": rf"(conv1|bn|fc)\.\w+|layer[123]\.(ModuleList\.\d+\.({BLOCK}|bn_additional\.\w+)|{CELL})",
    "dia_wrn52_4": r"(conv1|bn1|fc)\.\w+|block[123]\.(ModuleList\.\d\.(conv[12]|bn[12]|convShortcut|bn_additional)\.\w+"
    rf"|{CELL})",
    "dia_resnext101_8x32": r"(conv_1_3x3|bn_1|classifier)\.\w+|stage_[123]\.(ModuleList\.\d+\."
    r"(conv_(reduce|conv|expand)|bn(_reduce|_expand)?|shortcut\.shortcut_(conv|bn))\.\w+"
    rf"|{CELL})",
}


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoints_of_the_other_papers_load_and_save(name, tmp_path):
    how = {"deep_stem": True, "head_channels": 16} if name.startswith("mrla_base") else {}
    net = with_any_numbers(dla.create_model(name, 5, **how))
    state = to_published(net)
    assert [key for key in state if not re.fullmatch(OTHERS[name], key)] == []
    assert len(state) == len(net.state_dict())
    torch.save({"state_dict": {f"module.{key}": x for key, x in state.items()}}, tmp_path / "saved.pt")
    again = dla.create_model(name, 5, pretrained_path=tmp_path / "saved.pt", **how)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    bare = dla.create_model(name, 7, pretrained_path=tmp_path / "saved.pt", pretrained_head=False, **how)
    assert torch.equal(next(bare.parameters()), next(net.parameters())) and bare.fc.out_features == 7
    with pytest.raises(ValueError, match="checkpoint: expected a classifier of 7 classes, got one of 5"):
        dla.create_model(name, 7, pretrained_path=tmp_path / "saved.pt", **how)


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoints_of_the_other_papers_compute_what_their_formulas_say(name):
    small = {"depths": (2, 3)} | ({"deep_stem": True, "head_channels": 16} if name.startswith("mrla_base") else {})
    net = with_any_numbers(ResNet(num_classes=5, **{**MODELS[name], **small})).double().eval()
    x = torch.randn(3, 3, 32 if net.imagenet else 8, 32 if net.imagenet else 8, dtype=torch.float64)
    formula = published.mrla if name.startswith("mrla") else published.dianet
    with torch.no_grad():
        assert_equal_to_rounding([net(x)], [formula(to_published(net), x)], factor=1000)


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_checkpoints_load_and_save(name, tmp_path):
    net = with_any_numbers(dla.create_model(name))
    state = to_published(net)
    assert [key for key in state if not re.fullmatch(LAYOUTS[name], key)] == []
    assert len(state) == len(net.state_dict())
    C = net.channels[0]
    lam, q, v = (
        f"{'layer1' if net.imagenet else 'stages.0'}.attention.0.layer_attention.{end}"
        for end in (
            "lambda_t",
            f"{'mrla' if net.imagenet else 'layer_attention'}.Wq.weight",
            f"{'mrla' if net.imagenet else 'layer_attention'}.Wv.weight",
        )
    )
    assert lam not in state or state[lam].shape == (C, 1, 1)
    assert state[q].dim() == 3 and state[v].shape == (C, 1, 3, 3)
    torch.save(
        {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}}, tmp_path / "saved.pt"
    )
    again = dla.create_model(name, pretrained_path=tmp_path / "saved.pt")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "size"), [("dla_light_resnet20", 16), ("dla_base_resnet20", 16), ("dla_light_resnet50", 64)]
)
def test_a_published_checkpoint_computes_what_its_formulas_say(name, size):
    net = with_any_numbers(dla.create_model(name, num_classes=11)).double().eval()
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        assert_equal_to_rounding([net(x)], [published.network(to_published(net), x)], factor=1000)


def test_own_checkpoints_load_whole_and_in_part(tmp_path):
    net = small(num_classes=4)
    torch.save(net.state_dict(), tmp_path / "own.pt")
    again = ResNet(**SMALL, attention="dla_light", num_classes=4)
    load(again, torch.load(tmp_path / "own.pt"))
    assert torch.equal(net.fc.weight, again.fc.weight)
    features = ResNet(**SMALL, attention="dla_light", features_only=True)
    load(features, to_published(net))
    assert torch.equal(features.conv1.weight, net.conv1.weight)


@pytest.mark.parametrize(("wanted", "strides"), [((-1,), [2]), (1, [2]), (2, [1, 2]), ((0, -1), [1, 2])])
def test_stages_may_be_counted_from_the_last(wanted, strides):
    assert small(features_only=True, out_indices=wanted).strides == strides


@pytest.mark.parametrize("prefix", ["", "inner."])
def test_checkpoints_with_names_of_the_first_version_load(prefix):
    net, other = small(), small()
    older = {
        re.sub(r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.", name): x for name, x in other.state_dict().items()
    }
    older = {prefix + re.sub(r"^(stages\.\d)\.(\d)", r"\1.layers.\2", name): x for name, x in older.items()}
    assert f"{prefix}stages.1.layers.0.conv1.weight" in older and f"{prefix}stages.0.attention.layers.0.q" in older
    (torch.nn.ModuleDict({"inner": net}) if prefix else net).load_state_dict(older)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in other.state_dict().items())


def test_checkpoints_that_do_not_fit_are_refused():
    net = small()
    state = to_published(net)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(from_published(net, {key: x for key, x in state.items() if "lambda_t" not in key}))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict(from_published(net, {**state, "stages.0.other.weight": torch.zeros(1)}))
    key = "stages.0.attention.0.layer_attention.layer_attention.Wq.weight"
    with pytest.raises(ValueError, match=r"Wq.weight: expected shape \[1, 1, 3\], got \[1, 1, 5\]"):
        from_published(net, {**state, key: torch.zeros(1, 1, 5)})
    with pytest.raises(ValueError, match="net: expected the released DSU from zeros"):
        to_published(small(cell="lstm"))
    with pytest.raises(ValueError, match="net: expected a cell in every stage, got a stage of one layer"):
        to_published(ResNet((2, 1), Bottleneck, attention="dla_base"))
    for attention in ("mrla_light", "dia_light", "none"):
        with pytest.raises(ValueError, match=r"net: expected (one of create_model|DIANet's own from zeros)"):
            to_published(small(attention))
    with pytest.raises(ValueError, match="net: expected MRLA-B with deep_stem=True"):
        to_published(dla.create_model("mrla_base_resnet50"))


# ---- what people do with networks ----


@pytest.mark.parametrize("attention", ["dia", "dla_light", "dla_base"])
def test_networks_compile_and_export(attention):
    torch._dynamo.reset()
    net = with_any_numbers(small(attention)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
        compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["dia", "dla_light", "dla_base"])
def test_networks_take_channels_last_and_autocast(attention):
    net = with_any_numbers(small(attention)).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = net.train()(x)
        low.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def ddp_worker(rank, folder, attention):
    import torch.distributed.nn  # before there is a group: recipes/team.py says why

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(small(attention).double())
    x = torch.load(f"{folder}/x.pt")
    net(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    torch.save([p.grad for p in net.module.parameters()], f"{folder}/grads{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("attention", ["dla_light", "dla_base"])
def test_two_processes_make_the_gradients_of_one(attention, tmp_path):
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    torch.multiprocessing.spawn(ddp_worker, (str(tmp_path), attention), nprocs=2)
    net = small(attention).double()
    for half in x.split(2):  # each with norms of its own, as the processes have
        (net(half).square().mean() / 2).backward()
    expected = [p.grad for p in net.parameters()]
    for rank in (0, 1):
        assert_equal_to_rounding(torch.load(tmp_path / f"grads{rank}.pt"), expected, factor=1000, together=True)
