"""Measure layer_update and scan at the shapes that have targets: ours beside eager, torch.compile and a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import dla_kernels as dla
from bench.common import MB, SHAPES, Shape, Target, holds, interleaved, medians_ms
from bench.ops.work import CELLS, Work, pack, work_of
from dla_kernels import reference
from dla_kernels.terminal import progress, table
from dla_kernels.verify import Case, largest_error, parity

CELL = CELLS["layer_update"]
PARTS = ("gap", "refresh", "rescale")  # timed by themselves too, to say where the time of a missed target goes


def with_states(f: Any, tensors: Sequence[Tensor], T: int, **options: bool) -> tuple[Tensor, ...]:
    """Return all that layer_update returns of T maps and weights."""
    out, states = f.layer_update(tensors[:T], pack(CELL, tensors[T:]), cell=CELL, **options)
    return (*out, *states)


def in_place(update: Work) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of layer_update that refreshes copies of the maps where they are, over and over."""
    tensors = [x.clone() for x in update.tensors]

    def call() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return with_states(dla, tensors, update.shape.T, inplace=True)

    return call


def checked(scan: Work, update: Work) -> dict[str, tuple[float, float]]:
    """Return (error, allowed) of all that is timed."""
    whole = Case(update.op, CELL, update.tensors, partial(with_states, T=update.shape.T))
    once = largest_error(in_place(update)(), whole.call(dla, whole.tensors))
    checks = {case.op: parity(case, "cpu") for case in (scan.case, whole)}
    return checks | {"layer_update in place": (once, 0.0)}  # it must give the same bits


def candidates(scan: Work, update: Work, with_compile: bool) -> dict[str, Callable[[], object]]:
    """Return what is timed, by op and name."""
    peers = {"eager": reference}
    if with_compile:
        # Each shape is compiled for itself, as a user who calls it in a loop would have it.
        torch._dynamo.reset()
        ops = (reference.scan, reference.layer_update)
        peers["compile"] = SimpleNamespace(**{op.__name__: torch.compile(op, dynamic=False) for op in ops})
    peers["ours"] = dla
    found: dict[str, Callable[[], object]] = {"copy/copy": update.copy}
    for op, work, which in (
        ("scan", scan, "forward"),
        ("forward", update, "forward"),
        ("forward+backward", update, "both"),
    ):
        found |= {f"{op}/{name}": work.run(which, f) for name, f in peers.items()}
    found["forward/ours in place"] = in_place(update)
    return found | {f"parts/{op}": work_of(op, update.shape).run("forward", dla) for op in PARTS}


def measure(shape: Shape, rounds: int, with_compile: bool) -> dict:
    scan, update = work_of("scan", shape), work_of("layer_update", shape)
    checks = checked(scan, update)
    for op, (error, allowed) in checks.items():
        if not error <= allowed:
            raise SystemExit(f"{shape}: {op} is off by {error:.3g}, allowed {allowed:.3g}; not timing a wrong op")
    seconds = interleaved(candidates(scan, update, with_compile), rounds)
    return {
        "shape": shape._asdict(),
        "name": str(shape),
        "S": shape.S,
        "parity": {op: {"error": error, "allowed": allowed} for op, (error, allowed) in checks.items()},
        "ms": medians_ms(seconds),
        "seconds": seconds,
    }


def targets(row: dict) -> list[Target]:
    """Return the targets of one row: ratios to the better of eager and compile, and to a copy of 2S bytes."""
    ms, shape, large = row["ms"], Shape(**row["shape"]), row["S"] > 20 * MB
    copy = ms["copy/copy"]
    rows, R, C = shape.T * shape.B, shape.R, shape.C
    flops = 2 * rows * (2 * C * R + 3 * C * R)  # W1 on [h, y], W2 on the bottleneck
    maps = ms["parts/gap"] + ms["parts/rescale"]
    cell = ms["scan/ours"] + ms["parts/refresh"]

    def speedup(op: str, limit: float, why: str) -> Target:
        best = min(ms[key] for key in (f"{op}/eager", f"{op}/compile") if key in ms)
        ours = ms[f"{op}/ours"]
        return Target(op, best / ours, limit, True, f"{ours:.2f} ms, allowed {best / limit:.2f}; {why}")

    weights = f"{flops / ms['scan/ours'] / 1e6:.0f} GFLOP/s over {4 * 5 * C * R / MB:.1f} MB of weights for {rows} rows"
    out = [
        speedup("scan", 2.5, weights),
        speedup("forward", 1.5 if large else 2.0, f"by themselves the maps take {maps:.2f}, the cell {cell:.2f}"),
        speedup("forward+backward", 1.5, f"forward {ms['forward/ours']:.2f}; a copy takes {copy:.2f}"),
    ]
    if large:
        for name, key, limit in (("forward / copy", "ours", 1.25), ("in place / copy", "ours in place", 1.0)):
            time = ms[f"forward/{key}"]
            why = f"{time:.2f} ms, allowed {limit * copy:.2f}; by itself the cell takes {cell:.2f}"
            out.append(Target(name, time / copy, limit, False, why))
    return out


def report(rows: list[dict]) -> str:
    parts = []
    if not rows:
        return ""
    for op in ("scan", "forward", "forward+backward"):
        names = [key.split("/")[1] for key in rows[0]["ms"] if key.startswith(f"{op}/")]
        body = []
        for row in rows:
            ms = row["ms"]
            copy = ms["copy/copy"]
            best = min(ms[f"{op}/{n}"] for n in names if not n.startswith("ours"))
            line = [row["name"], f"{row['S'] / MB:.1f}"]
            line += [f"{copy:.2f}"] if op != "scan" else []
            line += [f"{ms[f'{op}/{n}']:.3f}" for n in names]
            line += [f"{best / ms[f'{op}/ours']:.2f}x"]
            if op == "forward":
                gbs = 2 * row["S"] / ms[f"{op}/ours"] / 1e6
                line += [f"{gbs:.1f}", f"{2 * row['S'] / copy / 1e6:.1f}", f"{ms[f'{op}/ours'] / copy:.2f}"]
                line += [f"{ms[f'{op}/ours in place'] / copy:.2f}"]
            body.append(line)
        header = ["shape", "S MB", *(["copy"] if op != "scan" else []), *names, "speedup"]
        header += ["GB/s", "copy GB/s", "ours/copy", "in place/copy"] if op == "forward" else []
        parts.append(f"{op}, ms (medians; speedup over the better of eager and compile)\n{table(header, body)}")
    return "\n\n".join(parts)


def run(rounds: int, with_compile: bool, wanted: str) -> list[dict]:
    shapes = [shape for shape in SHAPES if holds(str(shape), wanted)]
    return [measure(shape, rounds, with_compile) for shape in progress(shapes, "bench")]
