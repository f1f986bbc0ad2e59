"""How accuracy goes with depth (Fig. 4 of the DLA paper)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .stages import class_scores, evaluating

DEPTH = re.compile(r"(resnet|wrn|resnext)(\d+)")


class Result(NamedTuple):
    """What one trained network reaches."""

    name: str  # as of create_model
    accuracy: float  # from 0 to 1


def has_depth(name: str) -> bool:
    """Return whether the name of a network says how deep it is, as those of transformers do not."""
    return DEPTH.search(name) is not None


def family_and_depth(name: str) -> tuple[str, int]:
    """Return the name without its depth, and the depth.

    >>> family_and_depth("dla_light_resnet56"), family_and_depth("dia_resnext101_8x32")
    (('dla_light_resnet', 56), ('dia_resnext_8x32', 101))
    """
    found = DEPTH.search(name)
    if found is None:
        raise ValueError(f"name: expected one with a depth, such as dla_light_resnet56, got {name!r}")
    return name[: found.end(1)] + name[found.end(2) :], int(found[2])


def by_depth(results: Iterable[Result]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Return, of each family, depths in their order with the mean, least and largest accuracy at each."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, reached in results:
        family, depth = family_and_depth(name)
        found.setdefault(family, {}).setdefault(depth, []).append(reached)
    return {
        family: [(depth, sum(of) / len(of), min(of), max(of)) for depth, of in sorted(depths.items())]
        for family, depths in found.items()
    }


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of images whose class the network finds, from 0 to 1, of batches of images and labels."""
    right = total = 0
    with evaluating(net):
        for images, labels in batches:
            right += int((class_scores(net, images).argmax(1) == labels).sum())
            total += len(labels)
    if not total:
        raise ValueError("batches: expected at least one image, got none")
    return right / total
