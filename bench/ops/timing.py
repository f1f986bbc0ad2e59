"""Time chosen ops at chosen shapes: `python -m dla_kernels bench --suite cifar --ops mix,light_step`.

Ours and the peers are interleaved round by round in one process; medians and quartiles are quoted. What fails its
parity check is not timed.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import dla_kernels as dla
from bench.clock import medians_and_spreads, reason, sampled
from bench.common import MB, Shape, commit, holds
from bench.devices import Call, Cpu, Cuda
from bench.model import formulas
from bench.ops.scan import work as scan_work
from bench.ops.suites import BATCHES, SUITES, shapes_of
from bench.ops.work import DTYPES, PASSES, Work, torch_lstm, work_of
from bench.report import plot
from bench.targets.gpu_inputs import copies_needed
from dla_kernels import reference
from dla_kernels.__main__ import at_least_one, system
from dla_kernels.backends import BACKENDS
from dla_kernels.terminal import progress, table
from dla_kernels.verify import functions, largest_error, parity

PEERS = ("eager", "compile", "graph", "lstm", "copy")


def backends_for(asked: list[str], device: Cpu | Cuda) -> list[str]:
    """Return the backends asked for, or the one `backend=None` would choose; exit if one cannot serve the device."""
    names = asked or [device.backend]
    for name in names:
        backend = BACKENDS[name]
        if not backend.available:
            raise SystemExit(f"--backends: {name} is not available: {backend.reason}")
        if device.type not in backend.device_types:
            raise SystemExit(f"--backends: {name} does not serve {device.type} tensors")
    return names


def lstms(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Work, Work]:
    """Return our LSTM scan and torch.nn.LSTM of the same weights: h alone, since torch returns only the last c."""
    cell = dla.Cell("lstm")
    y, *weights = scan_work(shape, dtype, device, cell=cell).tensors
    ours = Work("scan", shape, 0, [y, *weights], lambda f, t: f.scan(t[0], dla.Dense(*t[1:]), cell=cell)[:1], cell)
    module = torch_lstm(dla.Dense(*weights))
    theirs = Work("scan", shape, 0, [y, *module.parameters()], lambda f, t: module(t[0])[:1], cell)
    theirs.leaves = [y.clone().requires_grad_(), *module.parameters()]
    return ours, theirs


def sets_of(work: Work, device: Cpu | Cuda) -> list[Work]:
    """Return the inputs in enough copies to outgrow a GPU's L2 cache, so that no call finds them there."""
    count = copies_needed(work.S, device.l2_bytes, device.free_bytes()) if isinstance(device, Cuda) else 1
    copies = ([x.clone() for x in work.tensors] for _ in range(count - 1))
    return [work, *(Work(work.op, work.shape, work.maps, tensors, work.call, work.case.cell) for tensors in copies)]


def candidates(works: list[Work], which: str, args: argparse.Namespace, device: Cpu | Cuda) -> Iterator[tuple]:
    """Yield (name, builder of its calls, one for each set of inputs)."""
    op, backward = works[0].op, which == "backward"

    def calls(f: Any, among: list[Work] = works) -> list[Call]:
        return [one.run(which, f) for one in among]

    for name in args.backends:
        ours = functions(name)
        yield name, partial(calls, ours)
        if device.type == "cuda" and not backward:
            yield f"{name} graph", lambda ours=ours: device.captured(calls(ours))  # type: ignore[misc]
    if "eager" in args.peers:
        yield "eager", partial(calls, reference)
    if "graph" in args.peers and device.type == "cuda" and not backward:
        yield "eager graph", lambda: device.captured(calls(reference))
    if "compile" in args.peers:
        torch._dynamo.reset()
        # Each shape, and each layer of a stage, is compiled for itself, as a user who calls it in a loop would have it.
        torch._dynamo.config.recompile_limit = 64
        compiled = torch.compile(getattr(reference, op), dynamic=False)
        yield "compile", partial(calls, SimpleNamespace(**{op: compiled}))
    if "lstm" in args.peers and op == "scan":
        ours, theirs = lstms(works[0].shape, works[0].tensors[0].dtype, device.type)
        yield f"{args.backends[0]} lstm", partial(calls, functions(args.backends[0]), [ours])
        yield "torch lstm", partial(calls, None, [theirs])
    if "copy" in args.peers:
        yield "copy", lambda: [one.copy for one in works]


def measure(op: str, shape: Shape, dtype: str, args: argparse.Namespace, device: Cpu | Cuda) -> list[dict]:
    """Return a row for each pass."""
    works = sets_of(work_of(op, shape, DTYPES[dtype], device.type), device)
    checks = {name: parity(works[0].case, name) for name in args.backends}
    if "lstm" in args.peers and op == "scan":
        ours, theirs = lstms(shape, works[0].tensors[0].dtype, device.type)
        checks[f"{args.backends[0]} lstm"] = parity(ours.case, args.backends[0])
        difference = largest_error(theirs.call(None, theirs.tensors), ours.call(reference, ours.tensors))
        checks["torch lstm"] = difference, 1e-4  # the same function, in whatever precision torch chooses
    wrong = {name: check for name, check in checks.items() if not check[0] <= check[1]}
    rows = []
    for which in args.passes:
        notes = {f"parity {n}": f"off by {e:.3g}, allowed {a:.3g}: not timed" for n, (e, a) in wrong.items()}
        row: dict[str, Any] = {"op": op, "name": str(shape), "shape": shape._asdict(), "dtype": dtype, "pass": which}
        row |= {"S": works[0].S, "model": formulas.traffic(op, which, shape, dtype)._asdict(), "notes": notes}
        row |= {"ms": {}, "iqr_ms": {}, "samples": {}, "calls": {}, "peak_bytes": {}}
        rows.append(row)
        if wrong:
            continue
        found = candidates(works, which, args, device)
        row["samples"] = sampled(device, found, which, args.rounds, args.seconds, notes)
        row |= medians_and_spreads(row["samples"])
        for name, f in [*((name, functions(name)) for name in args.backends), ("eager", reference)]:
            count(works[0].run(which, f), name, row, device)
    return rows


def count(call: Callable, name: str, row: dict, device: Cpu | Cuda) -> None:
    for what, ask in (("calls", device.launches), ("peak_bytes", device.peak_bytes)):
        try:
            row[what][name] = ask(call)
        except RuntimeError as why:  # the profiler may be out of order
            row["notes"][f"{what} {name}"] = reason(why)


def copy_gbs(row: dict) -> float | None:
    return 2 * row["S"] / row["ms"]["copy"] / 1e6 if "copy" in row["ms"] else None


def gbs(row: dict, name: str) -> float:
    """Return the bytes of one pass over the measured time, in GB/s."""
    return (row["model"]["read"] + row["model"]["written"]) / row["ms"][name] / 1e6


def lines(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return the header of the CSV, and a line for each candidate of each row."""
    header = ["op", "shape", "dtype", "pass", "candidate", "ms", "iqr_ms", "gbs", "share_of_copy", "peak_mb", "calls"]
    body = []
    for row in rows:
        for name, ms in row["ms"].items():
            moved = gbs(row, name) if name != "copy" else copy_gbs(row)
            share = f"{moved / copy_gbs(row):.3f}" if "copy" in row["ms"] and moved else ""
            peak, calls = row["peak_bytes"].get(name), row["calls"].get(name)
            line = [row["op"], row["name"], row["dtype"], row["pass"], name, f"{ms:.4f}", f"{row['iqr_ms'][name]:.4f}"]
            line += [f"{moved:.2f}" if moved else "", share, f"{peak / MB:.2f}" if peak is not None else ""]
            body.append([*line, f"{sum(calls.values()):g}" if calls else ""])
    return header, body


def fastest(row: dict, names: Sequence[str]) -> str | None:
    """Return the fastest of the candidates of these names, captured or not; None if none was measured."""
    found = [name for name in row["ms"] if name.removesuffix(" graph") in names]
    return min(found, key=row["ms"].__getitem__, default=None)


def report(rows: list[dict], backends: list[str]) -> str:
    """Return a table for each op, and one of what was left out."""
    parts, costs = [], ["ours +-%", "speedup", "GB/s", "of copy", "MB", "eager MB", "calls"]
    for op in dict.fromkeys(row["op"] for row in rows):
        of_op = [row for row in rows if row["op"] == op]
        names = list(dict.fromkeys(name for row in of_op for name in row["ms"]))
        body = []
        for row in of_op:
            times = [f"{row['ms'][name]:.3f}" if name in row["ms"] else "-" for name in names]
            body.append([row["name"], row["dtype"], row["pass"], *times, *costs_of(row, backends)])
        parts.append(f"{op}, ms\n{table(['shape', 'dtype', 'pass', *names, *costs], body)}")
    left_out = [
        (f"{row['op']} {row['name']} {row['dtype']} {row['pass']}", what, why)
        for row in rows
        for what, why in row["notes"].items()
    ]
    if left_out:
        parts.append(table(("left out", "what", "why"), left_out))
    parts.append(
        "medians; speedup over the best of eager, its graph and compile; GB/s of the bytes that one pass moves;\n"
        "of copy: that over a copy's; MB: peak memory; calls into torch, or launches on a GPU: ours / eager"
    )
    return "\n\n".join(parts)


def costs_of(row: dict, backends: list[str]) -> list[str]:
    """Return what stands behind the times: spread, ratios, memory, calls."""
    ms, ours, peer = row["ms"], fastest(row, backends), fastest(row, ("eager", "compile"))
    if ours is None:
        return ["-"] * 7
    moved, copy = gbs(row, ours), copy_gbs(row)
    out = [f"{100 * row['iqr_ms'][ours] / ms[ours]:.0f}", f"{ms[peer] / ms[ours]:.2f}x" if peer else "-"]
    out += [f"{moved:.1f}", f"{moved / copy:.2f}" if copy else "-"]
    both = (backends[0], "eager")
    out += [f"{row['peak_bytes'][name] / MB:.1f}" if name in row["peak_bytes"] else "-" for name in both]
    calls = [f"{sum(row['calls'][name].values()):g}" if name in row["calls"] else "-" for name in both]
    return [*out, " / ".join(calls)]


def chosen(args: argparse.Namespace, device: Cpu | Cuda) -> list[tuple[str, Shape]]:
    """Return the ops and the shapes at which they are measured, as asked for."""
    todo: dict[tuple[str, Shape], None] = {}
    for suite, op in product(args.suite, args.ops):
        shapes = SUITES[suite]
        batch = args.batch or (BATCHES.get(suite) if device.type == "cuda" else None)
        if batch:
            shapes = tuple(shape._replace(B=batch) for shape in shapes)
        todo |= dict.fromkeys((op, shape) for shape in shapes_of(op, shapes) if holds(str(shape), args.shapes))
    if not todo:
        raise SystemExit(f"--shapes: no shape of {', '.join(args.suite)} holds {args.shapes!r}")
    return list(todo)


def run(args: argparse.Namespace) -> int:
    """Measure and print what was chosen; return 0, or 1 if an op was off."""
    device: Cpu | Cuda = Cuda() if args.device == "cuda" else Cpu()
    args.backends = backends_for(args.backends, device)
    rows: list[dict] = []
    try:
        for (op, shape), dtype in progress(list(product(chosen(args, device), args.dtypes)), "bench"):
            rows += measure(op, shape, dtype, args, device)
    except KeyboardInterrupt:
        print("\ninterrupted: these are the rows so far", file=sys.stderr)
    result = {"system": system() | device.facts(), "commit": commit(), "rows": rows}
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            header, body = lines(rows)
            csv.writer(file).writerows([header, *body])
    if args.plot:
        plot.drawn(plot.ops, rows, args.plot)
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:12} {value}" for name, value in result["system"].items()) + "\n")
        print(report(rows, args.backends))
    return int(any(note.startswith("parity") for row in rows for note in row["notes"]))


def add_arguments(parser: argparse.ArgumentParser, every_op: list[str]) -> None:
    """Add the options that choose ops and shapes, and say where the results go."""

    def some_of(known: Any) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            asked = text.split(",")
            if not set(asked) <= set(known):
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, comma-separated; got {text!r}")
            return asked

        return parse

    group = parser.add_argument_group("ops by choice, instead of the targets (with --suite or --ops)")

    def add(flag: str, known: Any, text: str) -> None:
        group.add_argument(flag, type=some_of(known), metavar="A,B", help=text)

    add("--suite", SUITES, f"shapes: {', '.join(SUITES)} (default: smoke; model: cifar,imagenet)")
    add("--ops", every_op, f"of {', '.join(every_op)} (default: all)")
    add("--dtypes", DTYPES, "of the maps (default: fp32)")
    add("--backends", BACKENDS, "default: the one that backend=None chooses")
    add("--passes", PASSES, "forward, backward, both as one (default: forward,both; model: forward,backward)")
    text = f"of {', '.join(PEERS)} (default: eager,copy; scaling: eager,compile,copy); "
    add("--peers", PEERS, text + "graph: eager in a CUDA graph, lstm: torch.nn.LSTM beside scan")
    group.add_argument("--batch", type=at_least_one, help="B in place of the suite's")
    group.add_argument("--seconds", type=float, help="timing of one row, about (default 2)")
    group.add_argument("--csv", type=Path, metavar="FILE", help="a line for each candidate")
    group.add_argument("--plot", type=Path, metavar="FILE", help="the times as a picture")
