"""Figures as the papers have them, drawn from numbers that are there already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .depth import Result, by_depth
from .gradients import distribution

WIDTH = 3.2  # of one picture, in inches


def new_figure(columns: int, rows: int = 1, height: float = WIDTH) -> tuple[Any, list[list[Any]]]:
    """Return a figure of matplotlib's, that no window knows of, and its axes by row and column."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures: expected matplotlib, which is not installed; pip install matplotlib") from error
    figure = Figure(figsize=(WIDTH * columns + 0.6, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def draw_squares(squares: Mapping[str, Tensor], title: str, across: str, label: str, diagonal: bool) -> Any:
    """Return a figure of lower triangles [T, T], with the diagonal or without, as heat maps beside each other."""
    if not squares:
        raise ValueError(f"{title}: expected at least one stage, got none")
    figure, (row,) = new_figure(len(squares))
    for axes, (name, square) in zip(row, squares.items()):
        if not square.isfinite().all():
            raise ValueError(f"{title}: expected finite numbers, got others in {name}; its training has diverged")
        T = len(square)
        above = torch.ones(T, T).triu(1 if diagonal else 0).bool()
        shown = square.detach().float().cpu().masked_fill(above, torch.nan)  # which is left blank
        image = axes.imshow(shown.numpy(), vmin=0, cmap="viridis", extent=(0.5, T + 0.5, T + 0.5, 0.5))
        axes.set(title=name, xlabel=across, ylabel="layer t")
        axes.locator_params(integer=True)
        figure.colorbar(image, ax=axes, shrink=0.7, label=label if axes is row[-1] else None)
    figure.suptitle(title)
    return figure


def draw_scores(squares: Mapping[str, Tensor], title: str = "attention scores") -> Any:
    """Draw the mean scores [T, T] of each stage (Fig. 2 of the DLA paper); ``StageRecord.mean_scores`` has them."""
    return draw_squares(squares, title, "layer m attended to", "score", diagonal=True)


def draw_gini(squares: Mapping[str, Tensor], title: str = "importance of earlier gates") -> Any:
    """Draw what layers say of later ones, [T, T] of each stage, as ``gini`` returns it (of the DIA paper)."""
    return draw_squares(squares, title, "layer m, a source", "importance", diagonal=False)


def draw_gradients(found: Mapping[str, Mapping[str, Tensor]], bins: int = 60) -> Any:
    """Draw how gradients are distributed at the end of each stage (Fig. 9 of the DIA paper).

    found: of each network what ``gradients`` returns. Each stage has one scale for all networks: three standard
        deviations of that which has the widest.
    """
    names = list(dict.fromkeys(stage for stages in found.values() for stage in stages))
    if not names:
        raise ValueError("found: expected gradients of at least one network, got none")
    figure, (row,) = new_figure(len(names))
    for axes, stage in zip(row, names):
        own = {network: stages[stage] for network, stages in found.items() if stage in stages}
        limit = 3 * max(float(g.double().square().mean().sqrt()) for g in own.values()) or 1.0
        edges = torch.linspace(-limit, limit, bins + 1)
        for network, values in own.items():
            axes.stairs(distribution(values, limit, bins).numpy(), edges.numpy(), label=network)
        axes.set(title=stage, xlabel="gradient", yscale="log")
        axes.ticklabel_format(axis="x", scilimits=(0, 0))
    row[0].set(ylabel="% of all")
    row[-1].legend(fontsize="small")
    return figure


def draw_cams(images: Tensor, cams: Mapping[str, Tensor], labels: Sequence[str] | None = None) -> Any:
    """Draw images, and under them where each network looks (Fig. 6 of the DIA paper).

    images: [B, C, H, W]; each is stretched to what can be shown.
    cams: of each network what ``grad_cam`` returns, [B, H, W].
    labels: a title for each image.
    """
    images = images.detach().float().cpu()
    low, high = (bound(images, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    shown = (images - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    figure, rows = new_figure(len(images), 1 + len(cams), height=1.5)
    figure.set_figwidth(1.5 * len(images) + 0.6)
    for axes in (axes for row in rows for axes in row):
        axes.set(xticks=[], yticks=[])
    for i, axes in enumerate(rows[0]):
        axes.imshow(shown[i].permute(1, 2, 0).numpy())
        axes.set_title("" if labels is None else labels[i], fontsize="small")
    for row, (network, cam) in zip(rows[1:], cams.items()):
        for i, axes in enumerate(row):
            axes.imshow(shown[i].permute(1, 2, 0).numpy())
            axes.imshow(cam[i].detach().float().cpu().numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=1)
        row[0].set_ylabel(network, fontsize="x-small")
    return figure


def draw_depths(results: Iterable[Result]) -> Any:
    """Draw accuracy over depth (Fig. 4 of the DLA paper), a line for each family of networks; of several networks of
    one depth the mean, with a bar from the least to the largest."""
    lines = by_depth(results)
    if not lines:
        raise ValueError("results: expected at least one, got none")
    figure, ((axes,),) = new_figure(1)
    figure.set_figwidth(5)
    for family, points in lines.items():
        depths, means, least, most = zip(*points)
        below, above = ([100 * abs(b - a) for a, b in zip(means, ends)] for ends in (least, most))
        axes.errorbar(depths, [100 * a for a in means], (below, above), marker="o", capsize=3, label=family)
    axes.set(xlabel="depth", ylabel="accuracy, %", xticks=sorted({d for points in lines.values() for d, *_ in points}))
    axes.legend(fontsize="small")
    return figure
