"""The parameter counts that the DLA paper gives, beside ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..cells import PAPER_DSU
from .registry import create_model

RELEASED = "released DSU, r = {}"
PAPER: dict[str, Any] = {"cell": PAPER_DSU, "reduction": 20}


class Row(NamedTuple):
    """A network, and the millions of parameters that the paper gives for numbers of classes."""

    name: str
    published: dict[int, float]
    options: dict[str, Any]  # by which create_model makes the network that meets them
    reading: str


def _cifar(depth: int, **figures: tuple[float, float]) -> list[Row]:
    rows = []
    for attention, (ten, hundred) in figures.items():
        reading = RELEASED.format(4) if attention.startswith("dla") else "r = 4" if attention == "dia" else ""
        name = f"resnet{depth}" if attention == "none" else f"{attention}_resnet{depth}"
        rows.append(Row(name, {10: ten, 100: hundred}, {}, reading))
    return rows


TABLE = (
    *_cifar(
        20,
        none=(0.22, 0.24),
        se=(0.24, 0.27),
        eca=(0.22, 0.24),
        dia=(0.44, 0.46),
        mrla_base=(0.23, 0.25),
        dla_base=(0.41, 0.43),
        mrla_light=(0.23, 0.25),
        dla_light=(0.41, 0.43),
    ),
    *_cifar(
        56,
        none=(0.59, 0.61),
        se=(0.66, 0.68),
        eca=(0.59, 0.61),
        dia=(0.81, 0.83),
        mrla_light=(0.62, 0.65),
        dla_light=(0.80, 0.82),
    ),
    *_cifar(
        110,
        none=(1.15, 1.17),
        se=(1.28, 1.30),
        eca=(1.15, 1.17),
        dia=(1.37, 1.39),
        mrla_light=(1.21, 1.24),
        dla_light=(1.39, 1.41),
    ),
    Row("resnet50", {1000: 25.6}, {}, ""),
    Row("dla_light_resnet50", {1000: 27.2}, PAPER, "paper DSU, r = 20"),
    Row("resnet101", {1000: 44.5}, {}, ""),
    Row("dla_light_resnet101", {1000: 47.8}, {}, RELEASED.format(16)),
)


def count(name: str, num_classes: int, **options: Any) -> int:
    """Return how many parameters a network has, without filling it with numbers."""
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, num_classes, **options).parameters())


def met(row: Row, num_classes: int, parameters: int) -> bool:
    """Return whether the paper's figure is ours rounded as it is there; one of its figures is cut, not rounded."""
    millions, figure = parameters / 1e6, row.published[num_classes]
    if (row.name, num_classes) == ("dla_light_resnet56", 100):
        return figure == int(millions * 100) / 100
    return figure == round(millions, digits(row))


def digits(row: Row) -> int:
    """Return how many decimals the paper gives."""
    return 1 if 1000 in row.published else 2


def parameter_table() -> list[tuple[Row, dict[int, int]]]:
    """Return each row of the paper with our counts for the same numbers of classes."""
    return [(row, {n: count(row.name, n, **row.options) for n in row.published}) for row in TABLE]
