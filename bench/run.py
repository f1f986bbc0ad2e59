"""Measure ours beside eager PyTorch, torch.compile and a copy: the rows of `make bench`, or ops and shapes by choice.

On a machine with a GPU the targets have a runner and options of their own: `bench --device cuda --help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from bench import common
from bench.common import LATEST, SHAPES, Target, commit, target_table
from bench.devices import Cuda, slug
from bench.model import predict, scaling
from bench.ops import timing
from bench.ops.work import every_op
from bench.report import plot, render
from bench.targets import blocks, gpu, networks, stages, steps
from dla_kernels.__main__ import at_least_one, system

WHAT = {
    "targets": "the rows that have targets, what docs/performance.md shows (the default)",
    "ops": "ops and shapes by choice",
    "scaling": "cost against T, B, C and HW, with fits and plots",
    "model": "what the traffic model predicts beside what is measured",
    "render": "docs/performance.md from bench/results",
}


def verdict(checks: list[tuple[str, Target]]) -> str:
    missed = [(name, t) for name, t in checks if not t.met]
    return f"targets: {len(checks) - len(missed)} of {len(checks)} met" + (
        "\n" + target_table(missed, "missed") if missed else ""
    )


EVERYWHERE = ("shapes", "rounds", "threads", "json")
BY_CHOICE = ("suite", "ops", "dtypes", "backends", "passes", "batch", "seconds")
# The options that each of WHAT listens to; it refuses the others.
OPTIONS = {
    "targets": (*EVERYWHERE, "no_compile", "out"),
    "ops": (*EVERYWHERE, *BY_CHOICE, "peers", "csv", "plot"),
    "scaling": (*EVERYWHERE, "no_compile", "out", "backends", "peers", "seconds"),
    "model": (*EVERYWHERE, *BY_CHOICE, "out", "counters"),
    "render": ("check",),
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dla_kernels bench", description=__doc__, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("what", nargs="?", choices=WHAT, default=None, help="; ".join(map(": ".join, WHAT.items())))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what to measure (default: cuda where there is one)")
    parser.add_argument("--shapes", metavar="A,B", help="only rows whose name holds one of these, e.g. C256,resnet56")
    parser.add_argument("--rounds", type=at_least_one, help="interleaved rounds (default 31)")
    parser.add_argument("--threads", type=at_least_one, help="torch threads")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    text = "folder for the results of all but ops (default: bench/results/latest/<device>)"
    parser.add_argument("--out", type=Path, help=text)
    parser.add_argument(
        "--counters",
        action="store_true",
        help="model: the bytes that pass the memory instead of times; by a GPU's counters (ncu), on a CPU by a "
        "simulated cache (valgrind: half an hour for all)",
    )
    parser.add_argument("--check", action="store_true", help="render: write nothing; exit 1 if the page is stale")
    timing.add_arguments(parser, every_op())
    given = vars(parser.parse_args(argv))
    what = given.pop("what") or ("ops" if {"suite", "ops"} & set(given) else "targets")
    if unheard := set(given) - set(OPTIONS[what]) - {"device"}:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unheard))
        parser.error(f"{flags}: not for {what}, which takes --{', --'.join(OPTIONS[what]).replace('_', '-')}")
    defaults = {
        **{"shapes": "", "rounds": 31, "threads": torch.get_num_threads(), "seconds": 2.0, "batch": None},
        **dict.fromkeys(("no_compile", "json", "counters", "check"), False),
        **dict.fromkeys(("out", "csv", "plot"), None),
        **{"suite": ["cifar", "imagenet"] if what == "model" else ["smoke"], "ops": every_op(), "dtypes": ["fp32"]},
        **{"passes": ["forward", "backward" if what == "model" else "both"], "backends": []},
        **{"peers": ["eager", "compile", "copy"] if what == "scaling" else ["eager", "copy"]},
    }
    return argparse.Namespace(**{"what": what, **defaults, **given})


def main() -> None:
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    where, rest = device.parse_known_args()
    chosen = any(word.partition("=")[0] in (*WHAT, "--suite", "--ops") for word in rest)
    if where.device == "cuda" and not chosen:
        raise SystemExit(gpu.main(rest))  # the targets of a GPU have options of their own
    args = arguments(rest)
    args.device = where.device
    if args.what == "render":
        raise SystemExit(render.main(args.check))
    args.out = args.out or LATEST / ("cpu" if args.device == "cpu" else slug(Cuda().name))
    try:  # a file that cannot be written is to be known before anything is timed
        for path in (args.csv, args.plot):
            if path:
                path.open("a").close()
        if "out" in OPTIONS[args.what]:
            args.out.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise SystemExit(str(why)) from None
    if args.device == "cpu":
        common.restart_with_allocator()
    torch.set_num_threads(args.threads)
    runners = {"targets": run_targets, "ops": timing.run, "scaling": scaling.run, "model": predict.run}
    try:
        raise SystemExit(runners[args.what](args))
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        raise SystemExit(130) from None


def run_targets(args: argparse.Namespace) -> int:
    known = [*map(str, (*SHAPES, *steps.LAYERS, steps.STAGE, *blocks.ROWS)), *networks.names()]
    if not any(common.holds(name, args.shapes) for name in known):
        raise SystemExit(f"--shapes: expected a part of one of {', '.join(known)}, got {args.shapes!r}")
    rows = stages.run(args.rounds, not args.no_compile, args.shapes)
    inside = steps.measure(args.rounds, not args.no_compile, args.shapes)
    ends = blocks.measure(args.rounds, not args.no_compile, args.shapes)
    whole = networks.measure(max(3, args.rounds // 4), args.shapes)
    inference = networks.infer(args.rounds, args.shapes)
    result = {"system": system(), "commit": commit(), "allocator": common.ALLOCATOR}
    result |= {"rows": rows, "attention": inside, "blocks": ends, "networks": whole, "inference": inference}
    parts = [stages.report(rows), steps.report(inside), blocks.report(ends), networks.report(whole)]
    parts += [networks.inference_report(inference), verdict(render.cpu_targets(result))]
    text = "\n\n".join(part for part in parts if part)
    (args.out / "bench.json").write_text(json.dumps(result, indent=1))
    (args.out / "bench.txt").write_text(text + "\n")
    written = ["bench.json", "bench.txt"]
    if rows and plot.drawn(plot.speedups, rows, args.out / "bench.png"):
        written.append("bench.png")
    if args.json:
        print(json.dumps(result))
        return 0
    for name, value in result["system"].items():
        print(f"{name:12} {value}")
    print(f"{'allocator':12} {' '.join(f'{k}={v}' for k, v in common.ALLOCATOR.items())}\n")
    print(text)
    print(f"\nwritten: {', '.join(str(args.out / name) for name in written)}")
    return 0


if __name__ == "__main__":
    main()
