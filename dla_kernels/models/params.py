"""The parameter counts that the DLA and DIA papers give, beside ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..cells import PAPER_DSU, Cell
from .registry import create_model

RELEASED = "released DSU, r = {}"
PAPER: dict[str, Any] = {"cell": PAPER_DSU, "reduction": 20}


class Row(NamedTuple):
    """A network, and the millions of parameters that a table gives for numbers of classes."""

    name: str
    published: dict[int, float]
    options: dict[str, Any]  # by which create_model makes the network that meets them
    reading: str
    table: str = "DLA 1"
    off: str = ""  # why a figure is not met


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
    Row("resnet50", {1000: 25.6}, {}, "", "DLA 2"),
    Row("se_resnet50", {1000: 28.1}, {}, "", "DLA 2"),
    Row("dia_resnet50", {1000: 28.4}, {"reduction": 20}, "r = 20", "DLA 2"),
    Row("mrla_light_resnet50", {1000: 25.7}, {}, "", "DLA 2"),
    Row("dla_light_resnet50", {1000: 27.2}, PAPER, "paper DSU, r = 20", "DLA 2"),
    Row("resnet101", {1000: 44.5}, {}, "", "DLA 2"),
    Row("se_resnet101", {1000: 49.3}, {}, "", "DLA 2"),
    Row("mrla_light_resnet101", {1000: 44.9}, {}, "", "DLA 2"),
    Row("dla_light_resnet101", {1000: 47.8}, {}, RELEASED.format(16), "DLA 2"),
    *(
        Row("dla_light_resnet110", {100: figure}, {"cell": kind}, f"{kind} cell", "DLA 4", off)
        for kind, figure, off in (
            ("rnn", 1.41, ""),
            ("lstm", 1.93, ""),
            ("dia", 1.46, ""),
            ("dsu", 1.39, "the same network has 1.41 in its Table 1"),
        )
    ),
    *(
        Row(f"dia_resnet{depth}", {100: figure}, {"cell": cell}, f"{cell.kind} cell", "DLA 6")
        for depth, figures in ((56, (1.31, 0.83, 0.79)), (110, (1.86, 1.39, 1.35)))
        for cell, figure in zip((Cell("lstm"), Cell("dia"), Cell("dsu")), figures)
    ),
    *(
        Row(name, dict(zip((10, 100), figures)), {}, "", "DIA 4")
        for name, figures in {
            "resnet164": (1.70, 1.73),
            "dia_resnet164": (1.92, 1.95),
            "dia_light_resnet164": (1.73, 1.75),
            "wrn52_4": (12.05, 12.07),
            "dia_wrn52_4": (12.28, 12.30),
            "dia_light_wrn52_4": (12.08,),
            "resnext101_8x32": (32.09, 32.14),
            "dia_resnext101_8x32": (32.96, 33.01),
            "dia_light_resnext101_8x32": (32.19, 32.24),
        }.items()
    ),
    *(
        Row("dia_resnet164", {100: figure}, {"reduction": r}, f"r = {r}", "DIA 10")
        for r, figure in ((1, 2.59), (4, 1.95), (8, 1.84), (16, 1.78))
    ),
    *(
        Row(f"dia_resnet{depth}", {100: figure}, {}, "r = 4", "DIA 11")
        for depth, figure in ((83, 1.11), (164, 1.95), (245, 2.78), (407, 4.45))
    ),
    *(
        Row(f"resnet{depth}", {100: figure}, {"norm": "none"}, "no norm", "DIA 14", off)
        for depth, figure, off in (
            (83, 0.88, ""),
            (164, 1.70, ""),
            (245, 2.53, "rounded up: 0.82 M more than ResNet-164 has in the same column"),
            (326, 3.35, ""),
        )
    ),
    *(
        Row(f"dia_resnet{depth}", {100: figure}, {"norm": "none", "reduction": 16}, "no norm, r = 16", "DIA 14", off)
        for depth, figure, off in (
            (83, 0.94, ""),
            (164, 1.76, ""),
            (245, 2.58, ""),
            (326, 3.41, "rounded up: its plain network and its cell have 3.35 and 0.057"),
        )
    ),
)


def count(name: str, num_classes: int, **options: Any) -> int:
    """Return how many parameters a network has, without filling it with numbers."""
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, num_classes, **options).parameters())


def flops(name: str, num_classes: int, **options: Any) -> int:
    """Return how many operations torch counts for one image, a multiplication and an addition being two."""
    with torch.device("meta"):
        net = create_model(name, num_classes, backend="reference", **options).eval()
        side = 224 if net.imagenet else 32
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, side, side))
    return counter.get_total_flops()


def met(row: Row, num_classes: int, parameters: int) -> bool:
    """Return whether the paper's figure is ours rounded as it is there; one of its figures is cut, not rounded."""
    millions, figure = parameters / 1e6, row.published[num_classes]
    if (row.name, row.table, num_classes) == ("dla_light_resnet56", "DLA 1", 100):
        return figure == int(millions * 100) / 100
    return figure == round(millions, digits(row))


def digits(row: Row) -> int:
    """Return how many decimals the paper gives."""
    return 1 if 1000 in row.published else 2


def parameter_table() -> list[tuple[Row, dict[int, int]]]:
    """Return each row of the papers with our counts for the same numbers of classes."""
    return [(row, {n: count(row.name, n, **row.options) for n in row.published}) for row in TABLE]
