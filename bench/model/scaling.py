"""Measure how cost grows with T, B, C and HW: a fixed part and a growing one, the floor, and where candidates cross."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

from bench.common import Shape, commit, holds
from bench.devices import Cpu, Cuda
from bench.model import formulas
from bench.ops import timing
from bench.report import plot
from dla_kernels.__main__ import system
from dla_kernels.terminal import progress, table

BASE = Shape(6, 8, 128, 14, 4)
AXES = {
    "T": (2, 4, 8, 16, 32, 64),
    "B": (1, 2, 4, 8, 32, 128, 512),
    "C": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "HW": (1, 2, 4, 7, 14, 28, 56),
}
FLOOR = "floor: one pass at a copy's bandwidth; below it, ours moves fewer bytes than the copy does"
OP, PASSES = "layer_update", ("forward", "both")


class Fit(NamedTuple):
    """The law ``ms = fixed + each * work ** power`` that fits some points, work being the bytes of the maps."""

    fixed: float
    each: float
    power: float
    off: float  # the largest relative distance of a measured point

    def __str__(self) -> str:
        return f"{1e3 * self.fixed:.0f} us + S^{self.power:.2f} +-{100 * self.off:.0f}%"


def fit(sizes: list[float], ms: list[float]) -> Fit:
    """Find the fit of least relative squares: fixed and each by their normal equations, the power by trying.

    A call of any size costs the fixed part, so that is at most the cheapest call.
    """
    best = None
    for power in (n / 20 for n in range(4, 41)):
        x = [(s / max(sizes)) ** power for s in sizes]
        # minimise sum of (fixed u + each v - 1)^2 with u = 1 / ms, v = x / ms
        u, v = [1 / t for t in ms], [a / t for a, t in zip(x, ms)]
        uu, vv, uv = (sum(a * b for a, b in zip(*pair)) for pair in ((u, u), (v, v), (u, v)))
        det = uu * vv - uv * uv
        fixed, each = ((vv * sum(u) - uv * sum(v)) / det, (uu * sum(v) - uv * sum(u)) / det) if det > 0 else (0, 0)
        if not 0 <= fixed <= min(ms) or each < 0:
            fixed = min(ms) if fixed > min(ms) else 0.0
            each = max(0.0, (sum(v) - fixed * uv) / vv)
        off = [abs((fixed + each * a) / t - 1) for a, t in zip(x, ms)]
        if best is None or sum(o * o for o in off) < best[0]:
            best = sum(o * o for o in off), Fit(fixed, each / max(sizes) ** power, power, max(off))
    assert best
    return best[1]


def crossing(sizes: list[float], ours: list[float], theirs: list[float]) -> float | None:
    """Return the size at which ours begins or ceases to be the faster, between measured points; None if never."""
    gap = [math.log(a / b) for a, b in zip(ours, theirs)]
    for (s0, g0), (s1, g1) in zip(zip(sizes, gap), list(zip(sizes, gap))[1:]):
        if g0 * g1 < 0:
            return math.exp(math.log(s0) + (math.log(s1) - math.log(s0)) * g0 / (g0 - g1))
    return None


def floor_ms(row: dict, path: str = "one pass") -> float:
    """Return the time that the model's bytes take at the copy's bandwidth."""
    return formulas.Traffic(**row["model"]).bytes(path) / (timing.copy_gbs(row) or math.nan) / 1e6


def times(rows: list[dict], name: str) -> list[float]:
    return [row["ms"][name] for row in rows]


def summary(rows: list[dict]) -> str:
    body = []
    for axis in AXES:
        for which in PASSES:
            line = [row for row in rows if row["axis"] == axis and row["pass"] == which]
            if len(line) < 3:
                continue
            names = [name for name in line[0]["ms"] if name != "copy"]
            measured = {name: [row for row in line if name in row["ms"]] for name in names}
            fits = [fit([float(row["S"]) for row in at], times(at, name)) for name, at in measured.items()]
            cells = [axis, which, *map(str, fits)]
            ours = names[0]
            for name in names[1:]:
                at = measured[name]
                even = crossing([float(row["S"]) for row in at], times(at, ours), times(at, name))
                ratios = sorted(b / a for a, b in zip(times(at, ours), times(at, name)))
                cells.append(
                    f"{ratios[0]:.1f}-{ratios[-1]:.1f}x, {f'even at {even / 1e6:.2g} MB' if even else 'never even'}"
                )
            body.append(cells)
    if not body:
        return "too few points"
    names = [name for name in rows[0]["ms"] if name != "copy"]
    header = ["axis", "pass", *names, *(f"{name} / {names[0]}" for name in names[1:])]
    title = f"{OP} around {BASE}: ms = fixed + each S^power, S the bytes of the maps, and how far off that is at most;"
    title += "\nthen the range of the speedup over each axis, and where it passes 1"
    return f"{title}\n{table(header, body)}"


def picture(rows: list[dict], path: Path, tag: dict[str, str] | None = None) -> None:
    figure, panels = plot.axes_of(len(AXES), nrows=len(PASSES), figsize=(16, 8))
    for which, line in zip(PASSES, panels):
        for axis, panel in zip(AXES, line):
            points = [row for row in rows if row["axis"] == axis and row["pass"] == which]
            if not points:
                continue
            at = [row["shape"][axis] for row in points]
            for name in points[0]["ms"]:
                if name != "copy":
                    there = [row for row in points if name in row["ms"]]
                    where = [row["shape"][axis] for row in there]
                    panel.plot(where, times(there, name), "o-", color=plot.COLOURS.get(name), label=name)
            panel.plot(at, [floor_ms(row) for row in points], "k:", label=FLOOR)
            panel.set(xscale="log", yscale="log", xlabel=axis, title=f"{OP}, {which}", ylabel="ms")
            panel.set_xticks(at, at)
            panel.minorticks_off()
    plot.legend_below(figure)
    figure.savefig(path, dpi=100, metadata=tag)


def run(args: argparse.Namespace) -> int:
    """Run `bench scaling`: measure, and write scaling.json and scaling.png into --out."""
    device: Cpu | Cuda = Cuda() if args.device == "cuda" else Cpu()
    args.backends, args.passes = timing.backends_for(args.backends, device), list(PASSES)
    if args.no_compile:
        args.peers = [peer for peer in args.peers if peer != "compile"]
    todo = [(axis, BASE._replace(**{axis: n})) for axis, values in AXES.items() for n in values]
    todo = [(axis, shape) for axis, shape in todo if holds(str(shape), args.shapes)]
    if not todo:
        raise SystemExit(f"--shapes: none of those around {BASE} holds {args.shapes!r}")
    rows = []
    for axis, shape in progress(todo, "scaling"):
        rows += [{**row, "axis": axis} for row in timing.measure(OP, shape, "fp32", args, device)]
    wrong = [note for row in rows for note in row["notes"] if note.startswith("parity")]
    if wrong:
        print(timing.report(rows, args.backends))
        return 1
    result = {"system": system() | device.facts(), "commit": commit(), "rows": rows}
    (args.out / "scaling.json").write_text(json.dumps(result, indent=1))
    written = ["scaling.json", *["scaling.png"] * plot.drawn(picture, rows, args.out / "scaling.png")]
    print(json.dumps(result) if args.json else f"{summary(rows)}\n\nwritten: {args.out}/{', '.join(written)}")
    return 0
