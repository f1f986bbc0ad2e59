"""Networks that are made by name: ``dla_light_resnet50`` and the like."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from .attentions import ATTENTIONS, TOKENS
from .blocks import BasicBlock, Bottleneck, PreBottleneck, WideBlock
from .published import from_published, is_published
from .resnet import ResNet
from .vit import VisionTransformer

# Name -> how that network is built.
BACKBONES: dict[str, dict[str, Any]] = {
    **{
        f"resnet{depth}": {"depths": ((depth - 2) // 9,) * 3, "block": Bottleneck}
        for depth in (20, 56, 83, 110, 164, 245, 326, 407)
    },
    "preresnet164": {"depths": (18,) * 3, "block": PreBottleneck},
    "wrn52_4": {"depths": (8,) * 3, "block": WideBlock, "width": 64, "stem": 16, "dropout": 0.3},
    "resnext101_8x32": {"depths": (11,) * 3, "block": Bottleneck, "width": 32, "groups": 8},
    "resnet18": {"depths": (2, 2, 2, 2), "block": BasicBlock, "imagenet": True},
    "resnet34": {"depths": (3, 4, 6, 3), "block": BasicBlock, "imagenet": True},
    "resnet50": {"depths": (3, 4, 6, 3), "block": Bottleneck, "imagenet": True},
    "resnet101": {"depths": (3, 4, 23, 3), "block": Bottleneck, "imagenet": True},
    "resnet152": {"depths": (3, 8, 36, 3), "block": Bottleneck, "imagenet": True},
    "resnext50_32x4d": {
        "depths": (3, 4, 6, 3),
        "block": Bottleneck,
        "imagenet": True,
        "groups": 32,
        "width_per_group": 4,
    },
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "deit_tiny": {"channels": 192, "heads": 3},
    "deit_small": {"channels": 384, "heads": 6},
    "deit_base": {"channels": 768, "heads": 12},
}
MODELS: dict[str, dict[str, Any]] = {
    f"{'' if attention == 'none' else f'{attention}_'}{backbone}": {"attention": attention, **how}
    for backbones, attentions in ((BACKBONES, ATTENTIONS), (TRANSFORMERS, ["none", *TOKENS]))
    for attention in attentions
    for backbone, how in backbones.items()
}

Network = ResNet | VisionTransformer
# What a name stands for.
NAMED = {ResNet: ("depths", "block", "imagenet"), VisionTransformer: ("channels", "heads")}
TIMMS = {"in_chans": "in_channels", "drop_path_rate": "drop_path"}  # timm's words for options of ours
OPTIONS = {kind: [x for x in signature(kind).parameters if x not in names] for kind, names in NAMED.items()}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match: an attention, or none, in front of a backbone.

    >>> list_models("dla_light*")[:3]
    ['dla_light_resnet20', 'dla_light_resnet56', 'dla_light_resnet83']
    """
    return [name for name in MODELS if fnmatch(name, pattern)]


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    pretrained_path: str | Path | None = None,
    pretrained_head: bool = True,
    features_only: bool = False,
    **options: Any,
) -> Network:
    """Make a network by its name.

    num_classes: 10 for CIFAR and 1000 for ImageNet unless given; 0 for no classifier.
    pretrained: False, as there are no weights to download; it is here for those who know timm.
    pretrained_path: a state dict saved by torch, our own or in the published code's layout; a checkpoint that holds one
        as ``state_dict`` or ``model`` will do.
    pretrained_head: whether its classifier is loaded too, which then has to have as many classes.
    features_only: the maps of stages in place of class scores, for detection; all of them, or those of ``out_indices``.
        Not of transformers.
    options: as ``ResNet`` or ``VisionTransformer`` takes them: ``cell``, ``reduction``, ``drop_path``, ``in_channels``,
        ``backend`` ...; timm's ``in_chans`` and ``drop_path_rate`` are understood.

    >>> net = create_model("dla_light_resnet20", num_classes=100, cell="lstm")
    """
    if pretrained:
        raise ValueError("pretrained: expected False, there are no weights to download; pretrained_path takes a file")
    if name not in MODELS:
        close = get_close_matches(str(name), MODELS, n=4) or ["dla_light_resnet50"]
        raise ValueError(f"name: expected a name such as {', '.join(close)}, got {name!r}; list_models() has all")
    for theirs, ours in TIMMS.items():
        if theirs in options:
            if ours in options:
                raise TypeError(f"{theirs}: expected it or {ours}, which says the same, got both")
            options[ours] = options.pop(theirs)
    kind = VisionTransformer if "heads" in MODELS[name] else ResNet
    if features_only and kind is VisionTransformer:
        raise ValueError("features_only: expected False, transformers have no stages of several sizes")
    if features_only:
        options["features_only"] = True
    for option in options:
        if option in NAMED[kind] or (option == "attention" and MODELS[name]["attention"] != "none"):
            raise ValueError(f"{option}: expected no such option, it is part of the name {name!r}")
        if option not in OPTIONS[kind]:
            free = ", ".join(OPTIONS[kind])
            raise TypeError(f"options: expected some of {free}, got {option!r}; weights come from pretrained_path")
    net = kind(num_classes=num_classes, **{**MODELS[name], **options})
    if pretrained_path is not None:
        with torch.serialization.safe_globals([Namespace]):  # the options of a run, beside its weights
            checkpoint = torch.load(pretrained_path, map_location="cpu", weights_only=True)
        load(net, checkpoint, head=pretrained_head)
    return net


def load(net: Network, checkpoint: Mapping[str, Any], *, head: bool = True) -> None:
    """Load a checkpoint strictly, but for the classifier where the network has none or ``head`` is False."""
    for inside in ("state_dict", "model"):
        if not isinstance(checkpoint, Mapping):
            raise TypeError(
                f"checkpoint: expected a state dict, or a dict that holds one, got {type(checkpoint).__name__}"
            )
        checkpoint = checkpoint.get(inside, checkpoint)
    # DistributedDataParallel and torch.compile put these in front of every key.
    state = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in checkpoint.items()}
    state = from_published(net, state) if is_published(state) else state
    classifier = "head." if isinstance(net, VisionTransformer) else "fc."
    own = {key: value for key, value in net.state_dict().items() if key.startswith(classifier)}
    weight = state.get(f"{classifier}weight")
    if not own or not head:
        state = {key: value for key, value in state.items() if not key.startswith(classifier)} | own
    elif weight is not None and len(weight) != net.num_classes:
        raise ValueError(
            f"checkpoint: expected a classifier of {net.num_classes} classes, got one of {len(weight)}; "
            "pretrained_head=False loads all but the classifier"
        )
    net.load_state_dict(state)
