"""Train one network with each cell in turn, to see what the recurrence across layers is worth on handwritten digits."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import dla_kernels as dla
from dla_kernels.terminal import table
from recipes.checkpoint import NAME
from recipes.log import draw
from recipes.run import run
from recipes.settings import load

CELLS = ("dsu", "dsu-paper", "lstm", "dia", "rnn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dla_light_resnet20", help="one with a cell")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="default: all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--plot", type=Path, default="cells.png", metavar="FILE")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {args.epochs}")
    curves, told = {}, []
    with TemporaryDirectory() as folder:
        for cell in args.cells:
            recipe, out = (
                load("digits").with_changes({"epochs": args.epochs, "options.cell": cell}),
                Path(folder) / cell,
            )
            curves[cell], stopped = run(recipe, args.model, "digits", out=out)
            if stopped is not None:
                return
            found = torch.load(out / NAME, weights_only=True)
            net = dla.create_model(found["name"], **found["options"])
            millions = sum(p.numel() for p in net.parameters()) / 1e6
            last = curves[cell][-1]
            seconds = sum(row["seconds"] for row in curves[cell])
            told.append((cell, f"{millions:.3f}", f"{last['test_accuracy']:.2%}", f"{seconds:.0f}"))
    print(table(("cell", "parameters, M", "test accuracy", "s"), told))
    if draw(curves, args.plot):
        print(f"written: {args.plot}")


if __name__ == "__main__":
    main()
