"""Train several networks by a recipe, several times each, and set them beside each other and the paper's figures:
``python -m recipes.table --recipe dla-cifar --models resnet56,dla_light_resnet56 --seeds 5 --data PATH``.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dla_kernels.data import Images

from . import checkpoint
from .checkpoint import Diverged
from .results import Outcome, Results, folder_of, outcome_of
from .run import data_of, model_options, network, resolved, run
from .settings import Recipe, RecipeError
from .team import place
from .train import TOLD, add_recipe, fail, recipe_of

HEADER = ("network", "parameters, M", "runs", "top-1, %", "best epoch, %", "p", "paper, %")


class Line(NamedTuple):
    """A network and its runs."""

    model: str
    outcomes: list[Outcome]

    @property
    def accuracies(self) -> list[float]:
        """Those of runs that did not diverge, in %."""
        return [100 * outcome.last for outcome in self.outcomes if outcome.last is not None]


def parameters_of(models: Iterable[str], recipe: Recipe, images: Images) -> dict[str, int]:
    """Return how many parameters each network has; one that cannot be made is said before any is trained."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are loaded to nowhere
        nets = {model: network(model, model_options(model, recipe, images), images.classes) for model in models}
    return {model: sum(p.numel() for p in net.parameters()) for model, net in nets.items()}


def run_missing(results: Results, recipe: Recipe, models: Sequence[str], data: str, seeds: int, out: Path) -> int:
    """Train what has no result yet; return the signal that ended it, or 0."""
    if len(models) > 1 and seeds > 1:
        student()
    missing = [
        (model, seed) for model in models for seed in range(seeds) if seed not in results.of(recipe, model, data)
    ]
    if not missing:
        return 0
    images, _ = data_of(recipe, data)
    parameters = parameters_of(dict(missing), recipe, images)
    for model, seed in missing:
        folder = out / folder_of(recipe, model, data, seed)
        print(f"{model}, seed {seed}: {folder}", flush=True)
        try:
            rows, signal = run(recipe, model, data, seed=seed, out=folder, resume=True)
        except Diverged as error:
            print(f"{model}, seed {seed}: {error}", file=sys.stderr)
            rows, signal = None, None
        if signal is not None:
            return signal
        results.add(recipe, model, data, outcome_of(rows, images.name, seed, parameters[model]))
    return 0


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of a sample."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def student() -> Any:
    """Return scipy's t-test."""
    try:
        from scipy import stats
    except ImportError as error:
        raise RecipeError("Student's t-test: it needs scipy, which is not installed; pip install scipy") from error
    return stats.ttest_ind


def p_value(values: Sequence[float], others: Sequence[float]) -> str:
    """Return how likely means so far apart are where there is no difference, by Student's t-test, two-sided."""
    if min(len(values), len(others)) < 2:
        return "-"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all the same
        p = student()(values, others).pvalue
    return f"{p:.2g}" if p == p else "-"


def cells(lines: Sequence[Line], recipe: Recipe) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for line in lines:
        first = line.outcomes[0]
        diverged = len(line.outcomes) - len(line.accuracies)
        best = [100 * outcome.best for outcome in line.outcomes if outcome.best is not None]
        paper = recipe.figures.get(first.images, {}).get(line.model)
        found.append(
            (
                line.model,
                f"{first.parameters / 1e6:.2f}",
                f"{len(line.outcomes)}" + (f", {diverged} diverged" if diverged else ""),
                spread(line.accuracies),
                spread(best),
                "" if line is lines[0] else p_value(line.accuracies, lines[0].accuracies),
                f"{paper:.2f}" if paper is not None else "-",
            )
        )
    return found


def markdown(lines: Sequence[Line], recipe: Recipe) -> str:
    """Return the table, with what it is of above it and what it means below."""
    images = lines[0].outcomes[0].images
    of = f" ({recipe.table})" if recipe.table else ""
    rows = [f"| {' | '.join(row)} |" for row in (HEADER, ("---",) * len(HEADER), *cells(lines, recipe))]
    return "\n".join(
        [
            f"Recipe {recipe.name}{of}, {recipe.epochs} epochs, on {images}:",
            "",
            *rows,
            "",
            f"Mean ± standard deviation over the runs, after the last epoch; p by Student's t-test against "
            f"{lines[0].model}.",
            "",
        ]
    )


def draw(lines: Sequence[Line], recipe: Recipe, path: Path) -> bool:
    """Draw every run, their means, and the paper's figures; return whether there is something to draw with."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(2 + 1.6 * len(lines), 3.6), layout="constrained")
    axes = figure.subplots()
    for i, line in enumerate(lines):
        values = line.accuracies
        axes.plot([i] * len(values), values, "o", color="C0", alpha=0.5, label="runs" if i == 0 else None)
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(
                i, statistics.mean(values), deviation, fmt="_", color="C0", capsize=6, markersize=24, linewidth=2
            )
        paper = recipe.figures.get(line.outcomes[0].images, {}).get(line.model)
        if paper is not None:
            axes.plot(
                i, paper, "D", color="C1", label=None if "paper" in axes.get_legend_handles_labels()[1] else "paper"
            )
    axes.set_xticks(range(len(lines)), [line.model for line in lines], rotation=20, ha="right")
    axes.set(ylabel="top-1, %", xlim=(-0.6, len(lines) - 0.4), title=f"{recipe.name}, {lines[0].outcomes[0].images}")
    axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    checkpoint.write(path, content.getvalue())
    return True


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.table",
        description="Train what is missing of several networks and seeds, keep the results in DIR/results.sqlite, and "
        "print them beside the paper's figures. An interrupted table goes on where it was.",
    )
    add_recipe(parser)
    parser.add_argument("--models", required=True, help="names, by commas; p is against the first")
    parser.add_argument("--seeds", type=int, default=5, help="how many, counted from 0 (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    return parser


def tabulate(recipe: Recipe, models: Sequence[str], data: str, seeds: int, out: Path) -> int:
    """Train what is missing, and write the table; return the status that the command ends with."""
    with Results(out / "results.sqlite") as results:
        signal = run_missing(results, recipe, models, data, seeds, out)
        if signal:
            print("stopped by a signal; the same command goes on")
            return 128 + signal
        found = {model: results.of(recipe, model, data) for model in models}
    lines = [Line(model, [runs[seed] for seed in range(seeds)]) for model, runs in found.items()]
    text = markdown(lines, recipe)
    print(text)
    checkpoint.write(out / f"table-{recipe.name}.md", text.encode())
    if not draw(lines, recipe, out / f"table-{recipe.name}.png"):
        print("the figure is not drawn: matplotlib is not installed")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        recipe = recipe_of(args)
        models = list(dict.fromkeys(name.strip() for name in args.models.split(",") if name.strip()))
        if place()[1] > 1:
            raise RecipeError("expected one process, which trains one network after the other, but torchrun has more")
        if args.seeds < 1 or not models:
            raise RecipeError("--models, --seeds: expected at least one of each")
        with checkpoint.alone(args.out):
            return tabulate(recipe, models, resolved(args.data), args.seeds, args.out)
    except TOLD as error:
        return fail("recipes.table", error)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
