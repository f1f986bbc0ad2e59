"""Translate checkpoints of the papers' own code: its names for our parameters, which are a layout's.

DLA and MRLA by the attention between blocks, DIANet by its cell and its blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..cells import RELEASED_DSU, Cell
from ..nn import DLABase, DLALight, InStages, LayerwiseIntegration, MRLABase, MRLABaseTokens, MRLALight, MRLALightTokens
from .attentions import BLOCKS_OF_A_STAGE
from .blocks import Bottleneck, PreBottleneck, WideBlock

if TYPE_CHECKING:
    from .registry import Network
    from .resnet import ResNet

# Names of the split projection's weights: its two bottlenecks are two small networks there.
CELL = {
    f"{kind}{number}{side}": f"lstm.w_{side_name}.0.seq.{place}.{word}"
    for side, side_name in (("y", "ih"), ("h", "hh"))
    for number, place in (("1", 0), ("2", 2))
    for kind, word in (("w", "weight"), ("b", "bias"))
}
FILTERS = {"q": "Wq.weight", "k": "Wk.weight", "v": "Wv.weight"}


class Layout(NamedTuple):
    """The names of one kind of checkpoint. Of each, in braces: S the stage, counted from 1, s the same from 0, t the
    layer, and rest what follows. What has no name here has the same there."""

    block: str
    cell: str = ""  # with {cell}, of CELL
    filter: str = ""  # with {filter}, of FILTERS
    lam: str = ""
    norm: str = ""  # of a layer's attention
    e: str = ""
    inside: Mapping[str, str] = {}  # how blocks call their parts
    around: Mapping[str, str] = {}  # and networks theirs


def of_dla(stage: str, inner: str, e: str) -> Layout:
    own = f"{stage}.attention.{{t}}"
    return Layout(
        f"{stage}.layers.{{t}}.{{rest}}",
        f"{stage}.{{cell}}",
        f"{own}.layer_attention.{inner}.{{filter}}",
        f"{own}.layer_attention.lambda_t",
        f"{own}.bn_layer_attention.{{rest}}",
        f"{stage}.{e}.weight",
    )


def of_mrla(stage: str) -> Layout:
    own = f"{stage}.{{t}}"
    return Layout(
        f"{own}.{{rest}}",
        filter=f"{own}.mrla.mrla.{{filter}}",
        lam=f"{own}.mrla.lambda_t",
        norm=f"{own}.bn_mrla.{{rest}}",
    )


def of_dia(stage: str, inside: Mapping[str, str] = {}, around: Mapping[str, str] = {}) -> Layout:
    return Layout(f"{stage}.ModuleList.{{t}}.{{rest}}", f"{stage}.{{cell}}", inside=inside, around=around)


DLA = {False: of_dla("stages.{s}", "layer_attention", "excite"), True: of_dla("layer{S}", "mrla", "extict")}
MRLA = {MRLALight: of_mrla("layer{S}"), MRLABase: of_mrla("stages.{s}")}
DIA = {
    Bottleneck: of_dia("layer{S}"),
    PreBottleneck: of_dia("layer{S}", {"bn4": "bn_additional"}, {"last_bn": "bn"}),
    WideBlock: of_dia("block{S}", {"bn3": "bn_additional", "downsample.0": "convShortcut"}, {"last_bn": "bn1"}),
}
RESNEXT = of_dia(
    "stage_{S}",
    {
        "conv1": "conv_reduce",
        "bn1": "bn_reduce",
        "conv2": "conv_conv",
        "bn2": "bn",
        "conv3": "conv_expand",
        "bn3": "bn_expand",
        "downsample.0": "shortcut.shortcut_conv",
        "downsample.1": "shortcut.shortcut_bn",
    },
    {"conv1": "conv_1_3x3", "bn1": "bn_1", "fc": "classifier"},
)


def layout_of(net: ResNet) -> Layout:
    """Return the layout that the papers' code saves such a network in; raise where it has none."""
    stages = getattr(net, "stages", ())
    attentions = [getattr(stage, "attention", None) for stage in stages]
    kinds = {type(attention) for attention in attentions}
    if kinds <= {DLALight, DLABase} and len(kinds) == 1:
        for attention in attentions:
            if attention.cell is None:
                raise ValueError("net: expected a cell in every stage, got a stage of one layer, which has none")
            check_cell(attention.cell, RELEASED_DSU, "the released DSU")
        return DLA[net.imagenet]
    if len(kinds) == 1 and (kind := kinds.pop()) in MRLA and net.imagenet:
        if kind is MRLABase and not net.deep_stem:
            raise ValueError("net: expected MRLA-B with deep_stem=True, which the published one has")
        return MRLA[kind]
    if all(isinstance(attention, LayerwiseIntegration) for attention in attentions) and stages and not net.imagenet:
        for attention in attentions:
            check_cell(attention.cell, Cell("dia"), "DIANet's own")
        block = stages[0][0]
        if type(block) in DIA:
            return RESNEXT if net.groups > 1 else DIA[type(block)]
    raise ValueError(
        "net: expected one of create_model that the papers' code has too: DLA, MRLA for ImageNet or on DeiT, or DIANet "
        "for CIFAR"
    )


def check_cell(cell: Any, expected: Cell, called: str) -> None:
    if cell.cell != expected or cell.start != "zeros" or len(cell.stack) > 1:
        raise ValueError(f"net: expected {called} from zeros, got {cell}")


def published_name(key: str, layout: Layout) -> str:
    """Return the published key for one of ours.

    >>> published_name("layer1.attention.layers.1.q", DLA[False])
    'stages.0.attention.1.layer_attention.layer_attention.Wq.weight'
    >>> published_name("layer1.attention.cell.w2h", DLA[True])
    'layer1.lstm.w_hh.0.seq.2.weight'
    >>> published_name("layer2.0.downsample.0.weight", RESNEXT)
    'stage_2.ModuleList.0.shortcut.shortcut_conv.weight'
    """
    found = re.fullmatch(r"layer(\d+)\.(.*)", key)
    if found is None:
        return renamed(key, layout.around)
    S, rest = int(found[1]), found[2]
    stage = {"S": S, "s": S - 1}
    if name := re.fullmatch(r"attention\.cell\.(\w+)", rest):
        return layout.cell.format(cell=CELL[name[1]], **stage)
    if rest == "attention.e":
        return layout.e.format(**stage)
    if name := re.fullmatch(r"attention\.layers\.(\d+)\.(q|k|v|lam|norm\.\w+)", rest):
        t, what = name[1], name[2]
        pattern = layout.filter if what in FILTERS else layout.lam if what == "lam" else layout.norm
        return pattern.format(t=t, filter=FILTERS.get(what), rest=what.removeprefix("norm."), **stage)
    t, _, rest = rest.partition(".")
    return layout.block.format(t=t, rest=renamed(rest, layout.inside), **stage)


def token_name(key: str) -> str:
    """Return the published key for one of ours in a vision transformer, whose attention is inside of blocks there.

    >>> token_name("blocks.attention.1.layers.2.norm_before.bias")
    'blocks.6.mrla.normo.bias'
    """
    found = re.fullmatch(r"blocks\.attention\.(?:(\d+)\.)?layers\.(\d+)\.(.*)", key)
    if found is None:
        return key
    t, what = BLOCKS_OF_A_STAGE * int(found[1] or 0) + int(found[2]), found[3]
    filters = f"mrla.{FILTERS[what]}" if what in FILTERS else what
    return f"blocks.{t}.mrla.{renamed(filters, {'norm_before': 'normo', 'norm': 'normx'}).replace('lam', 'lambda_t')}"


def names_of(net: Network) -> Callable[[str], str]:
    """Return the function from our keys to the published ones."""
    attention = getattr(getattr(net, "blocks", None), "attention", None)
    kinds = {type(stage) for stage in (attention if isinstance(attention, InStages) else [attention])}
    if kinds in ({MRLALightTokens}, {MRLABaseTokens}):
        return token_name
    return partial(published_name, layout=layout_of(net))  # type: ignore[arg-type]


def renamed(key: str, names: Mapping[str, str]) -> str:
    """Return a key whose first words have another name, if they have."""
    for ours, theirs in names.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    return key


def published_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the published shape for one of ours: filters over channels are a Conv1d there, and lam stands before a map
    where there are no tokens."""
    if key.endswith((".q", ".k")):
        return (1, 1, *shape)
    return (*shape, 1, 1) if key.endswith(".lam") and not key.startswith("blocks.") else shape


def is_published(state: Mapping[str, Tensor]) -> bool:
    return any(".lstm.w_ih." in key or ".mrla.Wq." in key for key in state)


def to_published(net: Network) -> dict[str, Tensor]:
    """Return the state dict of a network of a paper as the paper's code would save it."""
    name = names_of(net)
    return {
        name(key): value.reshape(published_shape(key, tuple(value.shape))) for key, value in net.state_dict().items()
    }


def from_published(net: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under our names, for ``net.load_state_dict``; keys unknown to us stay."""
    theirs = names_of(net)
    ours = {theirs(key): (key, value.shape) for key, value in net.state_dict().items()}
    found = {}
    for key, value in state.items():
        name, shape = ours.get(key, (key, value.shape))
        expected = published_shape(name, tuple(shape))
        if expected != tuple(shape):  # of others torch says what does not fit
            if tuple(value.shape) != expected:
                raise ValueError(f"{key}: expected shape {list(expected)}, got {list(value.shape)}")
            value = value.reshape(shape)
        found[name] = value
    return found
