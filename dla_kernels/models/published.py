"""Translate checkpoints of the published DLA code: its names for our parameters.

CIFAR: ``stages.S.attention.N.layer_attention...``, a cell called ``lstm`` and the refresh convolution ``excite``.
ImageNet: ``layer1`` to ``layer4`` for the stages, ``mrla`` inside, and ``extict``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..cells import RELEASED_DSU
from ..nn import DLABase, DLALight

if TYPE_CHECKING:
    from .resnet import ResNet

# Names of the split projection's weights: its two bottlenecks are two small networks there.
CELL = {
    f"{kind}{number}{side}": f"lstm.w_{side_name}.0.seq.{place}.{word}"
    for side, side_name in (("y", "ih"), ("h", "hh"))
    for number, place in (("1", 0), ("2", 2))
    for kind, word in (("w", "weight"), ("b", "bias"))
}


def published_name(key: str, imagenet: bool) -> str:
    """Return the published key for one of ours.

    >>> published_name("layer1.attention.layers.1.q", imagenet=False)
    'stages.0.attention.1.layer_attention.layer_attention.Wq.weight'
    >>> published_name("layer1.attention.cell.w2h", imagenet=True)
    'layer1.lstm.w_hh.0.seq.2.weight'
    """
    found = re.fullmatch(r"(layer(\d+))\.(.*)", key)
    if found is None:
        return key
    stage = found[1] if imagenet else f"stages.{int(found[2]) - 1}"
    rest, inner = found[3], "mrla" if imagenet else "layer_attention"
    if name := re.fullmatch(r"attention\.cell\.(\w+)", rest):
        rest = CELL[name[1]]
    elif re.match(r"\d", rest):
        rest = f"layers.{rest}"
    elif rest == "attention.e":
        rest = "extict.weight" if imagenet else "excite.weight"
    elif name := re.fullmatch(r"attention\.layers\.(\d+)\.(q|k|v|lam|norm\.\w+)", rest):
        of_layer = f"attention.{name[1]}"
        if name[2] == "lam":
            rest = f"{of_layer}.layer_attention.lambda_t"
        elif name[2].startswith("norm."):
            rest = f"{of_layer}.bn_layer_attention.{name[2].removeprefix('norm.')}"
        else:
            rest = f"{of_layer}.layer_attention.{inner}.W{name[2]}.weight"
    return f"{stage}.{rest}"


def published_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the published shape for one of ours: filters over channels are a Conv1d there, lam stands before a map."""
    if key.endswith((".q", ".k")):
        return (1, 1, *shape)
    return (*shape, 1, 1) if key.endswith(".lam") else shape


def is_published(state: Mapping[str, Tensor]) -> bool:
    return any(".lstm.w_ih." in key for key in state)


def check_published(net: ResNet) -> None:
    for stage in getattr(net, "stages", (None,)):
        attention = getattr(stage, "attention", None)
        if not isinstance(attention, (DLALight, DLABase)):
            raise ValueError("net: expected a DLA-L or DLA-B of create_model, which the published code has too")
        if attention.cell is None:
            raise ValueError("net: expected a cell in every stage, got MRLA or a stage of one layer, which has none")
        if attention.cell.cell != RELEASED_DSU or attention.cell.start != "zeros":
            raise ValueError(f"net: expected the released DSU from zeros, got {attention.cell}")


def to_published(net: ResNet) -> dict[str, Tensor]:
    """Return the state dict of a DLA network as the published code would save it."""
    check_published(net)
    return {
        published_name(key, net.imagenet): value.reshape(published_shape(key, tuple(value.shape)))
        for key, value in net.state_dict().items()
    }


def from_published(net: ResNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under our names, for ``net.load_state_dict``; keys unknown to us stay."""
    check_published(net)
    ours = {published_name(key, net.imagenet): (key, value.shape) for key, value in net.state_dict().items()}
    found = {}
    for key, value in state.items():
        name, shape = ours.get(key, (key, value.shape))
        expected = published_shape(name, tuple(shape))
        if tuple(value.shape) != expected:
            raise ValueError(f"{key}: expected shape {list(expected)}, got {list(value.shape)}")
        found[name] = value.reshape(shape)
    return found
