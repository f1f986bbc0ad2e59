"""Networks that are made by name: ``dla_light_resnet50`` and the like."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from .blocks import BasicBlock, Bottleneck
from .published import from_published, is_published
from .resnet import ATTENTIONS, ResNet

# Depth -> how a ResNet of that depth is built.
RESNETS: dict[int, dict[str, Any]] = {
    **{depth: {"depths": ((depth - 2) // 9,) * 3, "block": Bottleneck} for depth in (20, 56, 110, 164)},
    18: {"depths": (2, 2, 2, 2), "block": BasicBlock, "imagenet": True},
    34: {"depths": (3, 4, 6, 3), "block": BasicBlock, "imagenet": True},
    50: {"depths": (3, 4, 6, 3), "block": Bottleneck, "imagenet": True},
    101: {"depths": (3, 4, 23, 3), "block": Bottleneck, "imagenet": True},
}
MODELS: dict[str, dict[str, Any]] = {
    f"{'' if attention == 'none' else f'{attention}_'}resnet{depth}": {"attention": attention, **how}
    for attention in ATTENTIONS
    for depth, how in RESNETS.items()
}

NAMED = ("depths", "block", "imagenet", "attention")  # what a name stands for
OPTIONS = [option for option in signature(ResNet).parameters if option not in NAMED]


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match. ResNet-20, -56, -110 and -164 are for CIFAR, the others for ImageNet.

    >>> list_models("dla_light*")[:3]
    ['dla_light_resnet20', 'dla_light_resnet56', 'dla_light_resnet110']
    """
    return [name for name in MODELS if fnmatch(name, pattern)]


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained_path: str | Path | None = None,
    features_only: bool = False,
    **options: Any,
) -> ResNet:
    """Make a network by its name.

    num_classes: 10 for CIFAR and 1000 for ImageNet unless given.
    pretrained_path: a state dict saved by torch, our own or in the published code's layout; a checkpoint that holds one
        as ``state_dict`` or ``model`` will do.
    features_only: the maps of all stages in place of class scores, for detection.
    options: as ``ResNet`` takes them: ``cell``, ``reduction``, ``drop_path``, ``in_channels``, ``backend`` ...

    >>> net = create_model("dla_light_resnet20", num_classes=100, cell="lstm")
    """
    if name not in MODELS:
        close = get_close_matches(str(name), MODELS, n=4) or ["dla_light_resnet50"]
        raise ValueError(f"name: expected a name such as {', '.join(close)}, got {name!r}; list_models() has all")
    for option in options:
        if option in NAMED:
            raise ValueError(f"{option}: expected no such option, it is part of the name {name!r}")
        if option not in OPTIONS:
            free = ", ".join(OPTIONS)
            raise TypeError(f"options: expected some of {free}, got {option!r}; weights come from pretrained_path")
    net = ResNet(num_classes=num_classes, features_only=features_only, **{**MODELS[name], **options})
    if pretrained_path is not None:
        load(net, torch.load(pretrained_path, map_location="cpu", weights_only=True))
    return net


def load(net: ResNet, checkpoint: Mapping[str, Any]) -> None:
    """Load a checkpoint strictly, but for the classifier, which a net of features does not have."""
    for inside in ("state_dict", "model"):
        if not isinstance(checkpoint, Mapping):
            raise TypeError(
                f"checkpoint: expected a state dict, or a dict that holds one, got {type(checkpoint).__name__}"
            )
        checkpoint = checkpoint.get(inside, checkpoint)
    # DistributedDataParallel and torch.compile put these in front of every key.
    state = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in checkpoint.items()}
    if net.fc is None:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    net.load_state_dict(from_published(net, state) if is_published(state) else state)
