"""The command ``python -m dla_kernels analyze``: from checkpoints to figures, and to the numbers in them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..data import Images, open_data
from ..models import VisionTransformer
from ..terminal import table
from .checkpoint import Trained, labelled, load_trained
from .studies import STUDIES, Numbers, Subjects


def some_figures(text: str) -> list[str]:
    names = text.split(",")
    if not {*names} <= {*STUDIES}:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(STUDIES)}, got {text!r}")
    return [name for name in STUDIES if name in names]


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def add_analyze(commands: Any) -> None:
    text = "figures of trained networks: scores of layers, importance of gates, gradients, Grad-CAM, accuracy by depth"
    command = commands.add_parser("analyze", help=text, description=f"{text}; docs/analysis.md explains them")
    meaning = "last.pt of a training run; of several, what can be compared is in one figure"
    command.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=meaning)
    meaning = "synthetic, digits or a path, as for training (default: what the first checkpoint was trained with)"
    command.add_argument("--data", help=meaning)
    command.add_argument("--out", required=True, metavar="DIR", help="where figures go, and numbers.json")
    every = ",".join(STUDIES)
    command.add_argument("--figures", type=some_figures, default=[*STUDIES], help=f"some of {every} (default: all)")
    meaning = "the side that images are given (default: the first run's, or else their own, and 224 for photos)"
    command.add_argument("--size", type=at_least(1), metavar="N", help=meaning)
    for option, least, default, meaning in (
        ("images", 2, 256, "test images that networks are shown; accuracy takes all"),
        ("batch", 1, 64, "images at a time; gradients are of the first so many"),
        ("trees", 1, 10, "of each random forest"),
        ("seed", 0, 0, "chooses the images, and grows the forests"),
    ):
        told = f"{meaning} (default: {default})"
        command.add_argument(f"--{option}", type=at_least(least), default=default, metavar="N", help=told)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command.add_argument("--device", default=device, help=f"that networks run on (default: {device}, as it is here)")
    command.set_defaults(run=run_analyze)


def run_analyze(args: argparse.Namespace) -> int:
    try:
        return analyze(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"analyze: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"analyze: {str(error).splitlines()[0]} A smaller --batch takes less.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("analyze: interrupted; figures that were done are there", file=sys.stderr)
        return 130


def analyze(args: argparse.Namespace) -> int:
    check_installed(args.figures)
    check_device(args.device)
    networks = labelled(map(load_trained, args.checkpoints))
    data = open_images(args.data or networks[0].data, args.size, networks)
    for trained in networks:
        trained.net.to(args.device)
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed)).tolist()
    chosen = shuffled[: args.images]
    subjects = Subjects(networks, data, chosen, args.batch, args.trees, args.seed, args.device)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    numbers: Numbers = {trained.label: {"checkpoint": path} for trained, path in zip(networks, args.checkpoints)}
    rows = []
    for name in args.figures:
        for made in STUDIES[name](subjects, numbers):
            if made.figure is not None:
                made.figure.savefig(out / made.file, dpi=120)
            rows.append((name, f"none: {made.told}" if made.figure is None else out / made.file))
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(table(("figure", "file"), [*rows, ("numbers", out / "numbers.json")]))
    return 0


def check_installed(figures: Sequence[str]) -> None:
    """Say at once what a figure would say after minutes."""
    for package, module, needed in (("matplotlib", "matplotlib", True), ("scikit-learn", "sklearn", "gini" in figures)):
        if needed and find_spec(module) is None:
            others = "" if module == "matplotlib" else ", or leave gini out by --figures"
            raise ImportError(f"expected {package}, which is not installed; pip install {package}{others}")


def check_device(device: str) -> None:
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it has no numbers")
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        raise ValueError(f"--device: expected one that is here, such as cpu, got {device!r}") from error


def open_images(where: str | None, size: int | None, networks: Sequence[Trained]) -> Images:
    """Open the images to test with, of as many channels and classes as the networks have."""
    if where is None:
        raise ValueError("--data: expected synthetic, digits or a path, as the checkpoint does not say, got nothing")
    data = open_data(where, train=False, size=networks[0].size if size is None else size)
    for trained in networks:
        channels = next(p.shape[1] for p in trained.net.parameters() if p.dim() == 4)  # of the first convolution
        if (channels, trained.net.num_classes) != (data.channels, data.classes):
            raise ValueError(
                f"--data: expected images of {channels} channels and {trained.net.num_classes} classes for "
                f"{trained.label}, got {data.channels} and {data.classes} in {where}"
            )
        taken = trained.net.patch_embed.img_size if isinstance(trained.net, VisionTransformer) else None
        if taken not in (None, (data.size, data.size)):
            raise ValueError(
                f"--size: expected {taken[0]}, of which {trained.label} takes images, got {data.size} in {where}"
            )
    return data
