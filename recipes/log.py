"""What a run tells: a line and a row of ``log.csv`` for each epoch, TensorBoard where it is installed, and curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import write

COLUMNS = ("epoch", "rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
Row = dict[str, Any]


def told(row: Row, epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  rate {row['rate']:.3g}  "
        f"train: loss {row['train_loss']:.4f}, {row['train_accuracy']:.2%}  "
        f"test: loss {row['test_loss']:.4f}, {row['test_accuracy']:.2%}  {row['seconds']:.1f} s"
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue().encode())


class Board:
    """TensorBoard's file, or nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        """Begin the file anew, with the rows of a run that goes on. Other files of the folder stay."""
        self.writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        for old in folder.glob("events.out.tfevents*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder))
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        if self.writer is not None:
            for key in COLUMNS[1:]:
                self.writer.add_scalar(key.replace("_", "/"), row[key], row["epoch"])
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def draw(runs: Mapping[str, Sequence[Row]], path: Path) -> bool:
    """Draw loss and accuracy over the epochs of one run or several; return whether there is something to draw with."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (name, rows) in enumerate(runs.items()):
        epochs = [row["epoch"] for row in rows]
        for part, style in (("train", ":"), ("test", "-")):
            how = {"color": f"C{color}", "linestyle": style, "marker": "." if len(rows) < 3 else ""}
            left.plot(epochs, [row[f"{part}_loss"] for row in rows], label=f"{name}, {part}", **how)
            right.plot(epochs, [100 * row[f"{part}_accuracy"] for row in rows], **how)
    left.set(title="loss", xlabel="epoch", yscale="log")
    right.set(title="accuracy, %", xlabel="epoch")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if runs:
        left.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write(path, content.getvalue())
    return True
