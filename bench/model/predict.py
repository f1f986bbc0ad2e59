"""Show what the traffic model predicts beside what is measured: `python -m dla_kernels bench model [--counters]`."""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import product
from typing import NamedTuple

import torch

from bench.common import MB, Shape, commit
from bench.devices import Cpu, Cuda
from bench.model import ncu
from bench.model.counts import Counted, callgrind
from bench.model.formulas import PATHS, Traffic, traffic
from bench.ops import timing
from dla_kernels.__main__ import system
from dla_kernels.terminal import progress, table

NAME = ("op", "shape", "dtype", "pass")


def name(row: dict) -> list[str]:
    return [row["op"], row["name"], row["dtype"], row["pass"]]


class Machine(NamedTuple):
    """The rates that a device reaches in the two things that the model counts."""

    bytes_per_ms: float  # read and written by a copy
    flops_per_ms: float  # by torch's own matrix product


def predicted_ms(found: Traffic, machine: Machine, path: str) -> float:
    """Add the times of the maps' traffic and of the cell's chain of products, which come one after the other."""
    return found.bytes(path) / machine.bytes_per_ms + found.flops / machine.flops_per_ms


def machine(device: Cpu | Cuda, moved: float) -> Machine:
    """Measure this device by a copy that moves so many bytes, read and written, and by a matrix product."""
    x = torch.randn(max(1, int(moved) // 8), device=device.type)
    to, a = torch.empty_like(x), torch.randn(1024, 1024, device=device.type)
    calls = {"copy": lambda: to.copy_(x), "product": lambda: a @ a}
    for call in calls.values():
        device.timed(call, 3)
    samples = [[device.timed(call, 3) for call in calls.values()] for _ in range(7)]
    copy, product = (statistics.median(times) for times in zip(*samples))
    return Machine(2 * x.nbytes / copy, 2 * 1024**3 / product)


def report(rows: list[dict]) -> str:
    """Tabulate our time beside what the model predicts, for rows of bench/ops/timing.py with a ``machine`` each."""
    body = []
    for row in rows:
        found, on = Traffic(**row["model"]), Machine(**row["machine"])
        ours = row["ms"][next(iter(row["ms"]))]
        times = [predicted_ms(found, on, path) for path in PATHS]
        sizes = [found.bytes(PATHS[0]) / MB, found.again / MB]
        line = [*name(row), *(f"{size:.1f}" for size in sizes), f"{found.flops / 1e6:.0f}"]
        body.append([*line, *(f"{t:.3f}" for t in (*times, ours)), f"{ours / times[0]:.2f}"])
    header = [*NAME, "MB", "MB again", "MFLOP", *(f"{p}, ms" for p in PATHS), "measured", "over one pass"]
    return f"predicted and measured times\n{table(header, body)}"


def report_counters(rows: list[dict]) -> str:
    """Tabulate the bytes that passed the memory beside those of the model, whose second pass only reads."""
    body = []
    for row in rows:
        found, counted = Traffic(**row["model"]), row["counted"]
        least, most = found.read, found.read + found.again
        sizes = [least, found.again, counted["read"], found.written, counted["written"]]
        line = [*name(row), *(f"{size / MB:.2f}" for size in sizes)]
        ratios = [counted["read"] / least, counted["read"] / most, counted["written"] / found.written]
        body.append([*line, *(f"{ratio:.2f}" for ratio in ratios)])
    header = [*NAME, "read, MB", "and again", "counted", "written, MB", "counted"]
    header += ["read: over one pass", "over two passes", "written: over one pass"]
    return f"predicted and counted bytes\n{table(header, body)}"


def time_them(todo: list[tuple[str, Shape, str]], args: argparse.Namespace, device: Cpu | Cuda) -> list[dict]:
    """Return rows with our times, and with what the machine reaches beside them."""
    args.peers, rows = [], []
    for op, shape, dtype in progress(todo, "model"):
        for row in timing.measure(op, shape, dtype, args, device):
            if row["ms"]:
                on = machine(device, Traffic(**row["model"]).bytes(PATHS[0]))
                rows.append({**row, "machine": on._asdict()})
    return rows


def count_them(todo: list[tuple[str, Shape, str]], args: argparse.Namespace, device: Cpu | Cuda) -> list[dict]:
    """Return rows with the bytes that pass the device's memory, by a GPU's counters or by a simulated cache."""
    cases = [Counted(op, shape, which, dtype) for op, shape, dtype in todo for which in args.passes]
    try:
        counted = ncu.counters(cases, args.backends[0]) if device.type == "cuda" else callgrind(cases)
    except (FileNotFoundError, RuntimeError) as why:
        raise SystemExit(f"--counters: {why}") from None
    return [
        {"op": op, "name": str(shape), "shape": shape._asdict(), "dtype": dtype, "pass": which}
        | {"model": traffic(op, which, shape, dtype)._asdict(), "counted": counted[str(case)]}
        for case in cases
        for op, shape, which, dtype in [case]
    ]


def run(args: argparse.Namespace) -> int:
    """Run `bench model`: measure or count, and write model.json or counters.json into --out."""
    device: Cpu | Cuda = Cuda() if args.device == "cuda" else Cpu()
    args.backends = timing.backends_for(args.backends, device)
    todo = [(op, shape, dtype) for (op, shape), dtype in product(timing.chosen(args, device), args.dtypes)]
    rows, text, file = (
        (count_them, report_counters, "counters.json") if args.counters else (time_them, report, "model.json")
    )
    result = {"system": system(), "commit": commit(), "rows": rows(todo, args, device)}
    (args.out / file).write_text(json.dumps(result, indent=1))
    print(json.dumps(result) if args.json else text(result["rows"]))
    return 0
