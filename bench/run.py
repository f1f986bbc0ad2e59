"""Ours beside eager PyTorch, torch.compile and a copy: what `make bench` measures, or ops and shapes by choice.

On a machine with a GPU the targets have a runner and options of their own: `bench --device cuda --help`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bench import attention, common, gpu, networks, ops, plot, predict, render, scaling, stages
from bench.common import HERE, SHAPES, Target, commit, target_table
from bench.devices import Cuda, slug
from bench.work import every_op
from dla_kernels.__main__ import system

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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dla_kernels bench", description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=WHAT, default="targets", help="; ".join(map(": ".join, WHAT.items()))
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what to measure (default: cuda where there is one)")
    parser.add_argument(
        "--shapes", default="", metavar="TEXT", help="only rows whose name holds TEXT, e.g. C256, resnet56"
    )
    parser.add_argument("--rounds", type=int, default=31, help="interleaved rounds (default 31)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--no-compile", action="store_true", help="targets: without torch.compile, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--out", type=Path, help="folder for the results of all but ops (default: bench/results/<device>)"
    )
    parser.add_argument(
        "--counters",
        action="store_true",
        help="model: the bytes that pass the memory instead of times; by a GPU's counters (ncu), on a CPU by a "
        "simulated cache (valgrind)",
    )
    parser.add_argument("--check", action="store_true", help="render: write nothing; exit 1 if the page is stale")
    ops.add_arguments(parser, every_op())
    args = parser.parse_args()
    if args.what == "targets" and (args.suite or args.ops):
        args.what = "ops"
    args.suite = args.suite or (["cifar", "imagenet"] if args.what == "model" else ["smoke"])
    args.ops = args.ops or every_op()
    args.passes = args.passes or ["forward", "backward" if args.what == "model" else "both"]
    return args


def main() -> None:
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    where, rest = device.parse_known_args()
    chosen = any(word.partition("=")[0] in (*WHAT, "--suite", "--ops") for word in rest)
    if where.device == "cuda" and not chosen:
        raise SystemExit(gpu.main(rest))  # its targets have options of their own
    args = arguments()
    args.device = where.device
    if args.what == "render":
        raise SystemExit(render.main(args.check))
    args.out = args.out or HERE / "results" / ("cpu" if args.device == "cpu" else slug(Cuda().name))
    if args.device == "cpu":
        common.restart_with_allocator()
    torch.set_num_threads(args.threads)
    runners = {"targets": run_targets, "ops": ops.run, "scaling": scaling.run, "model": predict.run}
    raise SystemExit(runners[args.what](args))


def run_targets(args: argparse.Namespace) -> int:
    known = [*map(str, (*SHAPES, *attention.LAYERS, attention.STAGE)), *networks.names()]
    if not any(args.shapes in name for name in known):
        raise SystemExit(f"--shapes: expected a part of one of {', '.join(known)}, got {args.shapes!r}")
    rows = stages.run(args.rounds, not args.no_compile, args.shapes)
    inside = attention.measure(args.rounds, not args.no_compile, args.shapes)
    whole = networks.measure(max(3, args.rounds // 4), args.shapes)
    result = {"system": system(), "commit": commit(), "allocator": common.ALLOCATOR}
    result |= {"rows": rows, "attention": inside, "networks": whole}
    args.out.mkdir(parents=True, exist_ok=True)
    parts = [stages.report(rows), attention.report(inside), networks.report(whole), verdict(render.cpu_targets(result))]
    text = "\n\n".join(part for part in parts if part)
    (args.out / "bench.json").write_text(json.dumps(result, indent=1))
    (args.out / "bench.txt").write_text(text + "\n")
    written = ["bench.json", "bench.txt"]
    if rows:
        plot.speedups(rows, args.out / "bench.png")
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
