"""Train a network by a recipe: ``python -m recipes.train --recipe dla-cifar --data PATH``, also under torchrun."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dla_kernels.data import DataError

from . import settings
from .checkpoint import NAME, Stopped, before
from .run import run
from .settings import Recipe, RecipeError
from .team import place

# What ends a command with one line in place of a traceback.
TOLD = (RecipeError, DataError, Stopped, OSError)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add what chooses and changes a recipe."""
    parser.add_argument("--recipe", required=True, help=f"{', '.join(settings.names())}, or a .toml file of yours")
    parser.add_argument("--data", required=True, help="synthetic, digits, or a path; docs/training.md has the kinds")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="instead of what the recipe says, as amp=bf16, or of the model's options, as options.reduction=8",
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    changes = dict(settings.parse_change(text) for text in args.set)
    if args.epochs is not None:
        changes["epochs"] = args.epochs
    return settings.load(args.recipe).with_changes(changes)


def fail(program: str, error: BaseException) -> int:
    """Say what went wrong in one line; of several processes, which one says it."""
    rank, world = place()
    which = f" (process {rank})" if world > 1 else ""
    print(f"{program}{which}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.train",
        description="Train a network by a recipe. Ends with 0, with 1 where something is wrong, and with 128 + a "
        "signal's number where one has ended it, after its step and a checkpoint.",
    )
    add_recipe(parser)
    parser.add_argument("--model", help="instead of the recipe's; dla_kernels.list_models() has all")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"for {NAME}, log.csv, curves.png (default: in runs/)")
    parser.add_argument("--resume", choices=["auto"], help=f"go on from DIR/{NAME} where there is one")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    out = args.out or Path("runs")
    try:
        if not 0 <= args.seed < 1 << 63:
            raise RecipeError(f"--seed: expected a whole number from 0 to 2^63, got {args.seed}")
        recipe = recipe_of(args)
        model = args.model or recipe.model
        out = args.out or Path("runs") / f"{recipe.name}-{model}-{args.seed}"
        result = run(recipe, model, args.data, seed=args.seed, out=out, resume=args.resume == "auto")
    except TOLD as error:
        return fail("recipes.train", error)
    except KeyboardInterrupt:
        print(f"recipes.train: interrupted{before(out)}", file=sys.stderr)
        return 130
    if place()[0] == 0:
        if result.signal is not None:
            print(f"stopped by a signal; --resume auto goes on from {out / NAME}")
        else:
            print(f"{model}: {result.rows[-1]['test_accuracy']:.2%} of the test images right; {out}/curves.png")
    return 128 + result.signal if result.signal is not None else 0


if __name__ == "__main__":
    sys.exit(main())
