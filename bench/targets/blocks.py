"""Measure what ends a residual block: a cell recalibrates the branch, the shortcut is added, and a relu follows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch

import dla_kernels as dla
from bench.common import MB, Shape, Target, holds, interleaved, medians_ms
from bench.ops import recalibrate
from bench.ops.work import Work
from bench.targets import steps
from dla_kernels import Cell, reference
from dla_kernels.terminal import progress, table
from dla_kernels.verify import parity

CELLS = {"dia": Cell("dia"), "light": Cell("dia", projection="light"), "se": Cell("se")}
LIMITS = {"forward": 2.0, "both": 1.8}  # times the better of eager and compile, by se with a shortcut


class Row(NamedTuple):
    """A branch [B, C, HW, HW], the name of the cell, and whether there is a shortcut."""

    B: int
    C: int
    HW: int
    cell: str
    adds: bool

    def __str__(self) -> str:
        return f"{self.cell}{'' if self.adds else '-alone'}-B{self.B}-C{self.C}-HW{self.HW}x{self.HW}"

    @property
    def shape(self) -> Shape:
        """The shape with the reduction that is published: 16, of DIA 4 on CIFAR, of its light cell twice as much."""
        r = 16 if self.cell == "se" or self.C > 256 or self.HW > 32 else 4
        return Shape(1, self.B, self.C, self.HW, 2 * r if self.cell == "light" else r)

    @property
    def moved(self) -> int:
        """The bytes of the maps that a forward pass has to move, in fp32."""
        return (2 + self.adds) * self.shape.S


ROWS = [Row(s.B, s.C, s.HW, cell, adds) for cell in CELLS for adds in (True, False) for s in steps.LAYERS]


def work_of(row: Row) -> Work:
    torch.manual_seed(0)
    return recalibrate.work(row.shape, torch.float32, "cpu", CELLS[row.cell], row.adds)


def measure_row(row: Row, rounds: int, with_compile: bool) -> dict:
    work = work_of(row)
    error, allowed = parity(work.case, "cpu")
    if not error <= allowed:
        raise SystemExit(f"{row}: recalibrate is off by {error:.3g}, allowed {allowed:.3g}; not timing a wrong op")
    peers = {"eager": reference}
    if with_compile:
        torch._dynamo.reset()
        peers["compile"] = SimpleNamespace(recalibrate=torch.compile(reference.recalibrate, dynamic=False))
    peers["ours"] = dla
    named: dict[str, Callable[[], object]] = {"copy/copy": work.copy}
    named |= {f"{which}/{name}": work.run(which, f) for which in LIMITS for name, f in peers.items()}
    seconds = interleaved(named, rounds)
    return {"name": str(row), **row._asdict(), "ms": medians_ms(seconds), "seconds": seconds}


def measure(rounds: int, with_compile: bool, wanted: str = "") -> list[dict]:
    rows = [row for row in ROWS if holds(str(row), wanted)]
    return [measure_row(row, rounds, with_compile) for row in progress(rows, "recalibrate")]


def row_of(found: dict) -> Row:
    return Row(*(found[name] for name in Row._fields))


def best_peer(ms: dict[str, float], which: str) -> float:
    return min(ms[key] for key in (f"{which}/eager", f"{which}/compile") if key in ms)


def targets(rows: list[dict]) -> list[tuple[str, Target]]:
    out = []
    for found in rows:
        row, ms = row_of(found), found["ms"]
        if row.cell != "se" or not row.adds:
            continue
        maps = (1 + row.adds) * row.shape.S  # that the copy reads, and writes
        for which, limit in LIMITS.items():
            ours, best = ms[f"{which}/ours"], best_peer(ms, which)
            copied = ms["copy/copy"] * row.moved / (2 * maps)
            why = f"{ours:.3f} ms, allowed {best / limit:.3f}; what forward moves takes a copy {copied:.3f}"
            title = "forward" if which == "forward" else "forward+backward"
            out.append((str(row), Target(f"recalibrate {title}", best / ours, limit, True, why)))
    return out


def report(rows: list[dict]) -> str:
    """Tabulate the times of both passes side by side: of the peers, ours, and how many times faster than the better."""
    if not rows:
        return ""
    names = [key.partition("/")[2] for key in rows[0]["ms"] if key.startswith("forward/")]
    body = []
    for found in rows:
        row, ms = row_of(found), found["ms"]
        line = [str(row), f"{row.shape.S / MB:.1f}"]
        for which in LIMITS:
            line += [f"{ms[f'{which}/{name}']:.3f}" for name in names]
            line += [f"{best_peer(ms, which) / ms[f'{which}/ours']:.2f}x"]
        line += [f"{row.moved / ms['forward/ours'] / 1e6:.1f}"]
        body.append(line)
    both = [*names, "speedup"]
    header = ["block", "map MB", *both, *(f"both {name}" for name in both), "GB/s"]
    title = (
        "recalibrate with a relu, ms: forward, then forward and backward; the bytes that forward has to move a second"
    )
    return f"{title}\n{table(header, body)}"
