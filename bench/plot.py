"""The picture of a benchmark run."""

from __future__ import annotations

from pathlib import Path

COLOURS = {
    "eager": "#b0b0b0",
    "eager graph": "#808080",
    "compile": "#7a9cc6",
    "compile graph": "#4f739f",
    "ours": "#d1603d",
    "ours graph": "#a3401f",
    "ours in place": "#e8a87c",
    "ours lstm": "#c9a227",
    "cudnn lstm": "#7fa650",
}


def speedups(rows: list[dict], path: Path) -> None:
    """Time relative to ours, one panel per op, a dotted line at the copy of 2S bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ops = ("scan", "forward", "forward+backward")
    figure, axes = plt.subplots(1, len(ops), figsize=(15, max(4.5, 0.7 * len(rows))), sharey=True, layout="constrained")
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
    figure.savefig(path, dpi=110)
