"""Draw pictures of a benchmark run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

COLOURS = {
    "eager": "#b0b0b0",
    "eager graph": "#808080",
    "compile": "#7a9cc6",
    "compile graph": "#4f739f",
    "copy": "#d8d2c4",
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


def speedups(rows: list[dict], path: Path, tag: dict[str, str] | None = None) -> None:
    """Draw the time relative to ours, one panel per op, with a dotted line at the copy of 2S bytes."""
    ops = ("scan", "forward", "forward+backward")
    figure, (axes,) = axes_of(len(ops), figsize=(15, max(4.5, 0.7 * len(rows))), sharey=True)
    for axis, op in zip(axes, ops):
        names = list(dict.fromkeys(key.split("/")[1] for row in rows for key in row["ms"] if key.startswith(f"{op}/")))
        height, labelled = 0.8 / max(1, len(names)), set[str]()
        for i, row in enumerate(rows):
            ours = row["ms"].get(f"{op}/ours") or row["ms"]["copy/copy"]
            for j, name in enumerate(names):
                if f"{op}/{name}" not in row["ms"]:
                    continue
                at = i + (j - (len(names) - 1) / 2) * height
                time = row["ms"][f"{op}/{name}"] / ours
                axis.barh(at, time, height, color=COLOURS[name], label=name if name not in labelled else None)
                labelled.add(name)
            if op == "forward":
                copy = row["ms"]["copy/copy"] / ours
                axis.plot([copy, copy], [i - 0.45, i + 0.45], "k:", label=None if i else "copy")
        axis.set_title(op)
        axis.set_xlabel("time / ours")
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axis.legend(fontsize="small")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110, metadata=tag)


def ops(rows: list[dict], path: Path) -> None:
    """Draw the milliseconds of every candidate, a panel for each pass."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure, (axes,) = axes_of(len(passes), figsize=(7 * len(passes), 2 + 0.5 * len(rows) / len(passes)), sharey=True)
    for axis, which in zip(axes, passes):
        of_pass = [row for row in rows if row["pass"] == which]
        names = list(dict.fromkeys(name for row in of_pass for name in row["ms"]))
        height = 0.8 / max(1, len(names))
        for j, name in enumerate(names):
            at = [i + (j - (len(names) - 1) / 2) * height for i, row in enumerate(of_pass) if name in row["ms"]]
            times = [row["ms"][name] for row in of_pass if name in row["ms"]]
            axis.barh(at, times, height, color=COLOURS.get(name), label=name)
        axis.set(title=which, xlabel="ms", xscale="log")
        axis.set_yticks(range(len(of_pass)), [f"{row['op']} {row['name']} {row['dtype']}" for row in of_pass])
        axis.legend(fontsize="small")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
