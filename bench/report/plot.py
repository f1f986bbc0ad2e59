"""Draw pictures of a benchmark run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = {
    "eager": "#b0b0b0",
    "eager graph": "#808080",
    "compile": "#7a9cc6",
    "compile graph": "#4f739f",
    "copy": "#d8d2c4",
    "copying": "#d8d2c4",
    "ours": "#d1603d",
    "cpu": "#d1603d",
    "cuda": "#d1603d",
    "triton": "#8e5ea2",
    "triton graph": "#5f3a70",
    "ours graph": "#a3401f",
    "ours in place": "#e8a87c",
    "ours lstm": "#c9a227",
    "cudnn lstm": "#7fa650",
}

PASSES = ("forward", "forward+backward")
# What is set side by side at a glance, in a passer-by's words.
GLANCE = {
    "copying": "as published, copying",
    "eager": "plain PyTorch",
    "compile": "torch.compile",
    "ours": "dla-kernels",
}


def axes_of(count: int, nrows: int = 1, **options: object) -> tuple:
    """Return (figure, its panels by row), drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(nrows, count, layout="constrained", squeeze=False, **options)


def drawn(draw: Callable[[list[dict], Path], None], rows: list[dict], path: Path) -> bool:
    """Draw a picture; return whether it could be drawn, since results are not to be lost for want of matplotlib."""
    try:
        draw(rows, path)
    except ImportError as why:
        print(f"no picture: {why}", file=sys.stderr)
        return False
    return True


def bars(axis: Any, rows: list[dict[str, float]], names: list[str]) -> None:
    """Draw a group of bars for each row, a bar for each of the names that it has."""
    height = 0.8 / max(1, len(names))
    places = [[name for name in names if name in row] for row in rows]  # side by side, without gaps
    for name in names:
        at = [i + (has.index(name) - (len(has) - 1) / 2) * height for i, has in enumerate(places) if name in has]
        axis.barh(at, [row[name] for row in rows if name in row], height, color=COLOURS.get(name), label=name)


def legend_below(figure: Any) -> None:
    """Put one legend for all panels where no bar is."""
    found = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    figure.legend(found.values(), found, loc="outside lower center", ncols=len(found), frameon=False)


def over_ours(ms: dict[str, float], op: str) -> dict[str, float]:
    """Return the times of an op's candidates as multiples of ours."""
    found = {key.removeprefix(f"{op}/").removeprefix("eager, "): ms[key] for key in ms if key.startswith(f"{op}/")}
    return {name: time / found["ours"] for name, time in found.items()} if found.get("ours") else {}


def speedups(rows: list[dict], path: Path, tag: dict[str, str] | None = None) -> None:
    """Draw the time relative to ours, one panel per op, with a dotted line at the copy of 2S bytes."""
    ops = ("scan", "forward", "forward+backward")
    figure, (axes,) = axes_of(len(ops), figsize=(15, max(4.5, 0.7 * len(rows))), sharey=True)
    for axis, op in zip(axes, ops):
        names = list(dict.fromkeys(key.split("/")[1] for row in rows for key in row["ms"] if key.startswith(f"{op}/")))
        bars(axis, [over_ours(row["ms"], op) for row in rows], names)
        for i, row in enumerate(rows):
            if op == "forward" and "forward/ours" in row["ms"]:
                copy = row["ms"]["copy/copy"] / row["ms"]["forward/ours"]
                axis.plot([copy, copy], [i - 0.45, i + 0.45], "k:", label=None if i else "copy of the maps")
        axis.set(title=op, xlabel="time / ours")
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes[0].invert_yaxis()
    legend_below(figure)
    figure.savefig(path, dpi=110, metadata=tag)


def layers(found: dict, path: Path, tag: dict[str, str] | None = None) -> None:
    """Draw the time relative to ours of a layer of DLA-L, a stage of DLA-B, and whole networks."""
    steps, stages = found["attention"]["layers"], found["attention"]["stages"]
    whole = [(f"base_step, {row['name']}, {op}", over_ours(row["ms"], op)) for row in stages for op in PASSES]
    for row in found["networks"]:
        for kind in ("dla_light", "dla_base", "dia", "se"):
            if times := over_ours(row["ms"], kind):
                whole.append((f"{kind}_resnet{row['depth']}, a training step", times))
    panels = {f"light_step, {op}": [(row["name"], over_ours(row["ms"], op)) for row in steps] for op in PASSES}
    panels["whole stages and networks"] = whole
    figure, (axes,) = axes_of(len(panels), figsize=(17, 5))
    for axis, (title, rows) in zip(axes, panels.items()):
        named = [times for _, times in rows]
        bars(axis, named, [name for name in GLANCE if any(name in times for times in named)])
        axis.set(title=title, xlabel="time / ours")
        axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        axis.invert_yaxis()
    legend_below(figure)
    figure.savefig(path, dpi=110, metadata=tag)


def glance(rows: list[tuple[str, dict[str, float]]], path: Path, tag: dict[str, str] | None = None) -> None:
    """Draw, for what people run, how long it takes by each way, ours being one."""
    figure, ((axis,),) = axes_of(1, figsize=(10, 1.2 + 0.9 * len(rows)))
    bars(axis, [{name: time / ms["ours"] for name, time in ms.items()} for _, ms in rows], list(GLANCE))
    axis.set(xlabel="time, in multiples of ours: shorter is better")
    axis.set_yticks(range(len(rows)), [title for title, _ in rows])
    axis.invert_yaxis()
    for box in axis.containers:
        axis.bar_label(box, fmt="%.1f", padding=2, fontsize="small")
    figure.legend(
        *zip(*((handle, GLANCE[label]) for handle, label in zip(*axis.get_legend_handles_labels()))),
        loc="outside lower center",
        ncols=len(GLANCE),
        frameon=False,
    )
    figure.savefig(path, dpi=110, metadata=tag)


def ops(rows: list[dict], path: Path) -> None:
    """Draw the milliseconds of every candidate, a panel for each pass."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure, (axes,) = axes_of(len(passes), figsize=(7 * len(passes), 2 + 0.5 * len(rows) / len(passes)), sharey=True)
    for axis, which in zip(axes, passes):
        of_pass = [row for row in rows if row["pass"] == which]
        bars(axis, [row["ms"] for row in of_pass], list(dict.fromkeys(name for row in of_pass for name in row["ms"])))
        axis.set(title=which, xlabel="ms", xscale="log")
        axis.set_yticks(range(len(of_pass)), [f"{row['op']} {row['name']} {row['dtype']}" for row in of_pass])
    axes[0].invert_yaxis()
    legend_below(figure)
    figure.savefig(path, dpi=110)
