"""Train dla_light_resnet20 on handwritten digits, to above 97 % in a minute or two on two cores."""

from __future__ import annotations

import argparse

import torch

import dla_kernels as dla
from examples.digits import plot, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dla_light_resnet20", help="see dla_kernels.list_models()")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--plot", default="digits.png", metavar="FILE", help="empty for none")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {args.epochs}")
    torch.manual_seed(0)
    net = dla.create_model(args.model, num_classes=10, in_channels=1)
    losses, accuracies, seconds = train(net, args.epochs, name=args.model)
    print(f"{args.model}: {accuracies[-1]:.2%} of the test images right after {args.epochs} epochs, {seconds:.0f} s")
    if args.plot:
        plot({args.model: (losses, accuracies)}, args.plot)


if __name__ == "__main__":
    main()
