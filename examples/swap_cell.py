"""Train one network with each cell in turn, to see what the recurrence across layers is worth on handwritten digits."""

from __future__ import annotations

import argparse

import torch

import dla_kernels as dla
from dla_kernels.terminal import table
from examples.digits import plot, train

CELLS = {
    "dsu-released": "dsu",
    "dsu-paper": dla.PAPER_DSU,
    "dsu-tanh": dla.Cell("dsu-paper", "tanh"),
    "lstm": "lstm",
    "dia": "dia",
    "rnn": "rnn",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dla_light_resnet20", help="one with a cell")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="default: all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--plot", default="cells.png", metavar="FILE", help="empty for none")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {args.epochs}")
    curves, rows = {}, []
    for name in args.cells:
        torch.manual_seed(0)
        net = dla.create_model(args.model, num_classes=10, in_channels=1, cell=CELLS[name])
        losses, accuracies, seconds = train(net, args.epochs, name=name)
        parameters = sum(p.numel() for p in net.parameters()) / 1e6
        curves[name] = losses, accuracies
        rows.append((name, f"{parameters:.3f}", f"{accuracies[-1]:.2%}", f"{seconds:.0f}"))
    print(table(("cell", "parameters, M", "test accuracy", "s"), rows))
    if args.plot:
        plot(curves, args.plot)


if __name__ == "__main__":
    main()
