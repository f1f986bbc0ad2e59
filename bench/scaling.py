"""How cost grows with T, B, C and HW: a fixed part and a growing one, the floor, and where the candidates cross."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

from bench import model, ops, plot
from bench.common import Shape, commit
from bench.devices import Cpu, Cuda
from dla_kernels.__main__ import system
from dla_kernels.terminal import progress, table

BASE = Shape(6, 8, 128, 14, 4)
AXES = {
    "T": (2, 4, 8, 16, 32, 64),
    "B": (1, 2, 4, 8, 32, 128, 512),
    "C": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "HW": (1, 2, 4, 7, 14, 28, 56),
}
OP, PASSES = "layer_update", ("forward", "both")


class Fit(NamedTuple):
    """``ms = fixed + each * work ** power``, work being the bytes of the maps."""

    fixed: float
    each: float
    power: float
    off: float  # the largest relative distance of a measured point

    def __str__(self) -> str:
        return f"{1e3 * self.fixed:.0f} us + S^{self.power:.2f}"


def fit(sizes: list[float], ms: list[float]) -> Fit:
    """Of least relative squares. Fixed and each by their normal equations, the power by trying."""
    best = None
    for power in (n / 20 for n in range(4, 41)):
        x = [(s / max(sizes)) ** power for s in sizes]
        # minimise sum of (fixed u + each v - 1)^2 with u = 1 / ms, v = x / ms
        u, v = [1 / t for t in ms], [a / t for a, t in zip(x, ms)]
        uu, vv, uv = (sum(a * b for a, b in zip(*pair)) for pair in ((u, u), (v, v), (u, v)))
        det = uu * vv - uv * uv
        fixed, each = ((vv * sum(u) - uv * sum(v)) / det, (uu * sum(v) - uv * sum(u)) / det) if det > 0 else (0, 0)
        if fixed < 0 or each < 0:
            fixed, each = 0.0, sum(v) / vv
        off = [abs((fixed + each * a) / t - 1) for a, t in zip(x, ms)]
        if best is None or sum(o * o for o in off) < best[0]:
            best = sum(o * o for o in off), Fit(fixed, each / max(sizes) ** power, power, max(off))
    assert best
    return best[1]


def crossing(sizes: list[float], ours: list[float], theirs: list[float]) -> float | None:
    """The size at which ours begins to be the faster, or ceases to be, between measured points; None if never."""
    gap = [math.log(a / b) for a, b in zip(ours, theirs)]
    for (s0, g0), (s1, g1) in zip(zip(sizes, gap), list(zip(sizes, gap))[1:]):
        if g0 * g1 < 0:
            return math.exp(math.log(s0) + (math.log(s1) - math.log(s0)) * g0 / (g0 - g1))
    return None


def floor_ms(row: dict, path: str = "one pass") -> float:
    """The bytes of the model at the copy's bandwidth."""
    return model.Traffic(**row["model"]).bytes(path) / (ops.copy_gbs(row) or math.nan) / 1e6


def summary(rows: list[dict]) -> str:
    body = []
    for axis in AXES:
        for which in PASSES:
            line = [row for row in rows if row["axis"] == axis and row["pass"] == which]
            if len(line) < 3:
                continue
            sizes = [float(row["S"]) for row in line]
            named = {name: [row["ms"][name] for row in line] for name in line[0]["ms"] if name != "copy"}
            ours = next(iter(named))
            fits = {name: fit(sizes, ms) for name, ms in named.items()}
            cells = [axis, which, *map(str, fits.values())]
            for name, ms in named.items():
                if name != ours:
                    at = crossing(sizes, named[ours], ms)
                    ratios = sorted(b / a for a, b in zip(named[ours], ms))
                    cells.append(f"{ratios[0]:.1f}-{ratios[-1]:.1f}x" + (f", even at {at / 1e6:.2g} MB" if at else ""))
            body.append(cells)
    if not body:
        return "too few points"
    names = [name for name in rows[0]["ms"] if name != "copy"]
    header = ["axis", "pass", *names, *(f"{name} / {names[0]}" for name in names[1:])]
    title = f"{OP} around {BASE}: ms = fixed + each S^power, S the bytes of the maps; and the range of the speedup"
    return f"{title}\n{table(header, body)}"


def picture(rows: list[dict], path: Path, tag: dict[str, str] | None = None) -> None:
    figure, panels = plot.axes_of(len(AXES), nrows=len(PASSES), figsize=(16, 8))
    for which, line in zip(PASSES, panels):
        for axis, panel in zip(AXES, line):
            points = [row for row in rows if row["axis"] == axis and row["pass"] == which]
            at = [row["shape"][axis] for row in points]
            for name in points[0]["ms"] if points else ():
                if name != "copy":
                    panel.plot(at, [row["ms"][name] for row in points], "o-", color=plot.COLOURS.get(name), label=name)
            panel.plot(at, [floor_ms(row) for row in points], "k:", label="floor: one pass at a copy's bandwidth")
            panel.set(xscale="log", yscale="log", xlabel=axis, title=f"{OP}, {which}", ylabel="ms")
            panel.set_xticks(at, at)
            panel.minorticks_off()
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=100, metadata=tag)


def run(args: argparse.Namespace) -> int:
    """`bench scaling`: measures, and writes scaling.json and scaling.png into --out."""
    device: Cpu | Cuda = Cuda() if args.device == "cuda" else Cpu()
    args.backends, args.passes = ops.backends_for(args.backends, device), list(PASSES)
    if args.peers == ["eager", "copy"]:
        args.peers = ["eager", "compile", "copy"]
    if args.no_compile:
        args.peers = [peer for peer in args.peers if peer != "compile"]
    todo = [(axis, BASE._replace(**{axis: n})) for axis, values in AXES.items() for n in values]
    todo = [(axis, shape) for axis, shape in todo if args.shapes in str(shape)]
    rows = []
    for axis, shape in progress(todo, "scaling"):
        rows += [{**row, "axis": axis} for row in ops.measure(OP, shape, args.dtypes[0], args, device)]
    wrong = [note for row in rows for note in row["notes"] if note.startswith("parity")]
    if wrong:
        print(ops.report(rows, args.backends))
        return 1
    result = {"system": system() | device.facts(), "commit": commit(), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scaling.json").write_text(json.dumps(result, indent=1))
    picture(rows, args.out / "scaling.png")
    print(json.dumps(result) if args.json else f"{summary(rows)}\n\nwritten: {args.out}/scaling.json, scaling.png")
    return 0
