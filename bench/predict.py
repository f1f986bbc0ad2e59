"""What the traffic model predicts beside what is measured: `python -m dla_kernels bench model`."""

from __future__ import annotations

import argparse
import json
import statistics
from typing import NamedTuple

import torch

from bench import ops
from bench.common import commit
from bench.devices import Cpu, Cuda
from bench.model import PATHS, Traffic
from bench.suites import SUITES, shapes_of
from dla_kernels.__main__ import system
from dla_kernels.terminal import progress, table


class Machine(NamedTuple):
    """What a device reaches in the two things that the model counts."""

    bytes_per_ms: float  # of a copy, both ways
    flops_per_ms: float  # of torch's own matrix product


def predicted_ms(found: Traffic, machine: Machine, path: str) -> float:
    """The cell's chain of products and the maps' traffic come one after the other, so their times add up."""
    return found.bytes(path) / machine.bytes_per_ms + found.flops / machine.flops_per_ms


def machine(device: Cpu | Cuda, S: float) -> Machine:
    """A copy of S bytes and a matrix product, on this device."""
    x = torch.randn(max(1, int(S) // 4), device=device.type)
    to, a = torch.empty_like(x), torch.randn(1024, 1024, device=device.type)
    calls = {"copy": lambda: to.copy_(x), "product": lambda: a @ a}
    for call in calls.values():
        device.timed(call, 3)
    samples = [[device.timed(call, 3) for call in calls.values()] for _ in range(7)]
    copy, product = (statistics.median(times) for times in zip(*samples))
    return Machine(2 * x.nbytes / copy, 2 * 1024**3 / product)


def report(rows: list[dict]) -> str:
    """The measured time of ours beside what the model predicts, for rows of bench/ops.py with a machine each."""
    body = []
    for row in rows:
        found, on = Traffic(**row["model"]), Machine(**row["machine"])
        ours = row["ms"][next(iter(row["ms"]))]
        times = [predicted_ms(found, on, path) for path in PATHS]
        line = [row["op"], row["name"], row["pass"], f"{found.bytes(PATHS[0]) / 1e6:.1f}", f"{found.again / 1e6:.1f}"]
        body.append(
            [*line, f"{found.flops / 1e6:.0f}", *(f"{t:.3f}" for t in (*times, ours)), f"{ours / times[0]:.2f}"]
        )
    header = [
        "op",
        "shape",
        "pass",
        "MB",
        "MB again",
        "MFLOP",
        *(f"{p}, ms" for p in PATHS),
        "measured",
        "over one pass",
    ]
    return f"predicted and measured, fp32\n{table(header, body)}"


def run(args: argparse.Namespace) -> int:
    """`bench model`"""
    device: Cpu | Cuda = Cuda() if args.device == "cuda" else Cpu()
    args.backends, args.peers = ops.backends_for(args.backends, device), []
    todo = [(op, s) for suite in args.suite for op in args.ops for s in shapes_of(op, SUITES[suite])]
    todo = [(op, shape) for op, shape in todo if args.shapes in str(shape)]
    rows = []
    for op, shape in progress(todo, "model"):
        measured = ops.measure(op, shape, "fp32", args, device)
        on = machine(device, measured[0]["S"])
        rows += [{**row, "machine": on._asdict()} for row in measured if row["ms"]]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model.json").write_text(json.dumps({"system": system(), "commit": commit(), "rows": rows}, indent=1))
    print(json.dumps(rows) if args.json else report(rows))
    return 0
