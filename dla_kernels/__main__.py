"""Run ``python -m dla_kernels info | verify | plan | params | analyze | bench``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from . import __version__, verify
from .analysis.command import add_analyze
from .backends import BACKENDS, REFERENCE, find_library
from .cells import KINDS
from .cuda_plan import DEVICES, cuda_plan
from .terminal import progress, table

BENCH = Path(__file__).parent.parent / "bench" / "run.py"


def backend_status() -> list[dict[str, Any]]:
    rows = [{"backend": REFERENCE, "available": True, "why": "plain PyTorch, for any device and any cell"}]
    for backend in BACKENDS.values():
        served = " and ".join(backend.device_types)
        when = "when asked for by name" if backend.only_by_name else "unless another is asked for"
        why = f"serves {served} tensors, {when}" if backend.available else backend.reason
        path = find_library(backend.library) if backend.available and backend.library else None
        if path and path.parent != Path(__file__).parent:
            why += f" with the kernels installed in {path.parent}"
        rows.append({"backend": backend.name, "available": backend.available, "why": why})
    return rows


def system() -> dict[str, Any]:
    """Return versions and devices."""
    devices = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    if BACKENDS["cpu"].available:
        devices[0] += f", kernels for {torch.ops.dla.cpu_isa()}"
    if torch.cuda.is_available():
        devices += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "dla_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "devices": devices,
        "cells": f"{', '.join(KINDS)}; those of dla.register_cell have no kernels and run by the reference",
    }


def info(args: argparse.Namespace) -> int:
    facts, backends = system(), backend_status()
    if args.json:
        print(json.dumps({**facts, "backends": backends}, indent=2))
        return 0
    for name, value in facts.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{name:12} {line}")
    print()
    rows = [(b["backend"], "yes" if b["available"] else "no", b["why"]) for b in backends]
    print(table(("backend", "available", "why"), rows))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    present = [(b.name, b.device_types[0]) for b in BACKENDS.values() if b.available]
    if not present:
        print("no compiled backend is available; see: python -m dla_kernels info", file=sys.stderr)
        return 1
    results = [verify.run_check(*item) for item in progress(verify.plan(present), "verify")]
    failures = [r for r in results if not r.passed]
    if args.json:
        print(json.dumps([{**r._asdict(), "passed": r.passed} for r in results], indent=2))
        return int(bool(failures))
    rows = []
    for backend, op, check in dict.fromkeys((r.backend, r.op, r.check) for r in results):
        group = [r for r in results if (r.backend, r.op, r.check) == (backend, op, check)]
        passed = sum(r.passed for r in group)
        worst = "" if check == "gradcheck" else f"{max(r.error for r in group):.1e}"
        rows.append((backend, op, check, f"{passed}/{len(group)}", worst, "ok" if passed == len(group) else "FAILED"))
    print(table(("backend", "op", "check", "passed", "largest error", ""), rows))
    for r in failures:
        print(f"FAILED {r.backend} {r.op} {r.cell} {r.check}: error {r.error:.3g}, allowed {r.allowed:.3g}")
    print(f"{len(results) - len(failures)} checks passed, {len(failures)} failed")
    return int(bool(failures))


def run_bench(args: argparse.Namespace) -> int:
    if not BENCH.exists():
        print(
            "the benchmarks are part of the repository, not of the installed package. Run this in a checkout of it: "
            f"there is no {BENCH}",
            file=sys.stderr,
        )
        return 1
    # PYTHONPATH instead of another working folder: files that the options name are relative to the caller's.
    path = os.pathsep.join([str(BENCH.parent.parent), os.environ.get("PYTHONPATH", "")])
    try:
        return subprocess.call(
            [sys.executable, "-m", "bench.run", *args.options], env=os.environ | {"PYTHONPATH": path}
        )
    except KeyboardInterrupt:
        return 130  # the benchmark has said that it was interrupted


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def add_plan(commands: Any) -> None:
    text = "how layer_update would run on a CUDA device, which need not be here"
    command = commands.add_parser("plan", help=text, description=f"{text}; docs/cuda.md explains the rows")
    for letter, default, meaning in (
        ("T", 12, "layers"),
        ("B", 128, "batch"),
        ("C", 256, "channels"),
        ("HW", 64, "pixels of a map"),
        ("R", 64, "bottleneck width"),
    ):
        command.add_argument(f"-{letter}", type=at_least_one, default=default, help=f"{meaning} (default: {default})")
    dtypes = ("bfloat16", "float16", "float32", "float64")
    command.add_argument("--dtype", choices=dtypes, default="bfloat16", help="of the maps (default: bfloat16)")
    command.add_argument("--device", choices=sorted(DEVICES), default="h200", help="default: h200")
    command.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    if not BACKENDS["cpu"].available:
        print(f"the plan is compiled into the CPU backend, which is not available: {BACKENDS['cpu'].reason}")
        return 1
    sizes, how = (args.T, args.B, args.C, args.HW, args.R), {"dtype": getattr(torch, args.dtype), "device": args.device}
    try:
        passes = [cuda_plan(*sizes, backward=backward, **how) for backward in (False, True)]
    except RuntimeError as error:  # the plan says what it expected of T
        print(str(error).splitlines()[0], file=sys.stderr)
        return 2
    print(table(("", "forward", "backward"), [(name, passes[0][name], passes[1][name]) for name in passes[0]]))
    return 0


def run_params(args: argparse.Namespace) -> int:
    from .models.params import digits, flops, met, parameter_table

    rows, unexplained, operations = [], 0, {}
    for row, counts in progress(parameter_table(), "params"):
        for num_classes, published in row.published.items():
            ours = counts[num_classes]
            right = met(row, num_classes, ours)
            unexplained += not right and not row.off
            key = row.name, tuple(row.options.items())
            if key not in operations:
                operations[key] = flops(row.name, num_classes, **row.options)
            figures = f"{published:.{digits(row)}f}", f"{ours / 1e6:.3f}", f"{operations[key] / 1e9:.2f}"
            said = "" if right else f"off: {row.off}"
            rows.append((row.table, row.name, num_classes, *figures, row.reading, said))
    print(table(("table", "network", "classes", "paper, M", "ours, M", "GFLOP", "reading", ""), rows))
    return int(unexplained > 0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dla_kernels", description="Fused kernels for layer attention.")
    parser.add_argument("--version", action="version", version=f"dla_kernels {__version__}")
    commands = parser.add_subparsers(required=True, metavar="info | verify | plan | params | analyze | bench")
    for name, run, text in (
        ("info", info, "versions, devices, and each backend: available, or why not and how to get it"),
        ("verify", run_verify, "parity and gradcheck of every op on every backend present; exit 1 on a failure"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        command.set_defaults(run=run)
    add_plan(commands)
    text = "parameter counts of the networks beside those of the DLA paper; exit 1 where they differ"
    commands.add_parser("params", help=text, description=text).set_defaults(run=run_params)
    add_analyze(commands)
    text = "time every op beside eager PyTorch, torch.compile and a copy; `bench --help` lists its options"
    commands.add_parser("bench", help=text, add_help=False).set_defaults(run=run_bench)
    args, options = parser.parse_known_args(argv)
    if options and args.run is not run_bench:
        parser.error(f"unknown arguments: {' '.join(options)}")
    args.options = options
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
