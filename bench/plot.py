"""The picture of a benchmark run."""

from __future__ import annotations

from pathlib import Path

COLOURS = {"eager": "#b0b0b0", "compile": "#7a9cc6", "ours": "#d1603d", "ours in place": "#e8a87c"}


def speedups(rows: list[dict], path: Path) -> None:
    """Time relative to ours, one panel per op, a dotted line at the copy of 2S bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ops = ("scan", "forward", "forward+backward")
    figure, axes = plt.subplots(1, len(ops), figsize=(15, 4.5), sharey=True, layout="constrained")
    for axis, op in zip(axes, ops):
        names = [key.split("/")[1] for key in rows[0]["ms"] if key.startswith(f"{op}/")]
        height = 0.8 / len(names)
        for i, row in enumerate(rows):
            ours = row["ms"][f"{op}/ours"]
            for j, name in enumerate(names):
                at = i + (j - (len(names) - 1) / 2) * height
                time = row["ms"][f"{op}/{name}"] / ours
                axis.barh(at, time, height, color=COLOURS[name], label=None if i else name)
            if op == "forward":
                copy = row["ms"]["copy/copy"] / ours
                axis.plot([copy, copy], [i - 0.45, i + 0.45], "k:", label=None if i else "copy")
        axis.set_title(op)
        axis.set_xlabel("time / ours")
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axis.legend(fontsize="small")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
