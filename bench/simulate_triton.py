"""Predict what the Triton kernels take of layer_update and light_step on a GPU: maps by the bytes that they move,
filters by these or by their instructions, the cell by how often its programs wait for a tile of weights. As in
simulate.py no GPU is needed, and a prediction is called one.

    python -m bench.simulate_triton [--device h100] [--rows PARTS]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections import Counter
from functools import cache
from math import ceil, gcd
from types import ModuleType
from typing import Any

import torch

from bench import simulate
from bench.common import HERE
from bench.simulate import LIKELY, Chip, Constant, Problem
from bench.simulate_targets import SHARES, moved, passed
from dla_kernels.terminal import table

# Fitted to the scans that were measured on an H100 with smaller tiles, 0.3 to 0.8 us for 2 to 8 KB of weights.
TRIP = Constant(0.9, 0.45, 0.3, "microseconds until a tile of weights begins to arrive and is summed up")
TILE = Constant(6e4, 1e5, 1.2e5, "bytes of it a microsecond, of a processor: 64 a cycle at best")
DOT = Constant(0.6, 0.3, 0.2, "microseconds of a tile of a product of 16 rows, whose next one is asked for ahead")
LARGE, SMALL_SHARE = 100e6, 0.7  # bytes of maps; a copy's bandwidth over two readings of those that are smaller
RECORD = HERE.parent / "tools" / "resources" / "triton.json"


@cache
def tiles() -> ModuleType:
    """Return the module of the tiles, which needs no Triton, as its package does."""
    spec = importlib.util.spec_from_file_location("tiles", HERE.parent / "triton_ops" / "tiles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiles_of(p: Problem) -> Any:
    return tiles().from_table(p.op if p.forward else f"{p.op}_bwd", p.C, p.R, 0, torch.bfloat16)


def trips(N: int, K: int, tile: tuple[int, int]) -> int:
    """Return how many tiles a product with N columns of K terms each takes."""
    return ceil(N / tile[0]) * ceil(K / tile[1])


Products = list[tuple[int, int]]


def products(p: Problem) -> tuple[Products, Products]:
    """Return N and K of the products of each step, and of those over all rows."""
    C, R, N = p.C, p.R, p.cell.num_gates * p.C
    if p.forward:  # hoisted, and refreshed
        return [(R, C), (N, R)], [(R, C), (N, R)]
    # The gates of scan and refresh once more, back through the refresh, and to y.
    return [(R, N), (C, R)], [(R, C), (R, C), (N, R), (N, R), (R, N), (C, R)]


def cell(p: Problem, chip: Chip, which: int) -> tuple[float, int]:
    """Return the microseconds of the cell beside those of its launches, and how many these are."""
    how = tiles_of(p)
    of_step, of_rows = products(p)
    tiles_of_samples, steps = ceil(p.B / how.samples), 1 if p.op == "light_step" else p.T
    if how.abreast:  # each phase as long as its slowest program, or as the cache takes to give all of them their tiles
        launches = (6 + 3 * steps) if p.forward else (13 + 3 * steps)

        def phase(N: int, K: int, layers: int) -> float:
            alone = ceil(K / how.product[1]) * DOT[which] / 2  # two programs on a processor hide half
            programs = tiles_of_samples * layers * ceil(N / how.product[0])
            rounds = max(1.0, programs / (2 * chip.processors))
            read = 4 * N * K * tiles_of_samples * layers / chip["cache"]
            return max(alone * rounds, read)

        time = steps * (sum(phase(N, K, 1) for N, K in of_step) + 1)
        return time + sum(phase(N, K, p.T) for N, K in of_rows), launches
    at_once = chip.processors * max(1, 16 // how.warps)
    return ceil(tiles_of_samples / at_once) * alone(steps, p.T, of_step, of_rows, how, which), 1


def alone(steps: int, T: int, of_step: Products, of_rows: Products, how: Any, which: int) -> float:
    """Return the microseconds of a program that takes its samples through the cell, T rows of each."""
    step = sum(trips(*product, tile) * wait(tile, which) for product, tile in zip(of_step, (how.into, how.out_of)))
    rows = ceil(T * how.samples / how.rows) * sum(trips(N, K, how.product) for N, K in of_rows) * DOT[which]
    return steps * (step + 1) + rows


def wait(tile: tuple[int, int], which: int) -> float:
    return TRIP[which] + 4 * tile[0] * tile[1] / TILE[which]


@cache
def turn(kernel: str, columns: int) -> float:
    """Return the instructions of a turn of a kernel that filters planar maps in pieces of so many columns: as counted
    for sm_90, of bf16, and between two widths on a line."""
    rows = json.loads(RECORD.read_text())["rows"]
    counted = {row[7] // 2: row[9] for row in rows if (row[0], row[1], row[3]) == ("sm_90", kernel, "bfloat16")}
    narrow, wide = 2, 8
    return counted[narrow] + (counted[wide] - counted[narrow]) * (columns - narrow) / (wide - narrow)


def issued(p: Problem, kernel: str, chip: Chip) -> float:
    """Return the microseconds in which all warps issue the instructions of a kernel that filters."""
    how = tiles().from_table(kernel, p.C, 0, p.HW**2, torch.bfloat16)
    strip = tiles().strip(how, p.HW, gcd(8, p.HW**2), False)
    turns = ceil((p.HW + 1) / tiles().ROWS_AHEAD) * ceil(p.HW / (strip.pieces * strip.columns))
    warps = p.B * ceil(p.C / strip.channels) * strip.channels * strip.pieces / 32
    return warps * turns * turn(kernel, strip.columns) / (chip["issue"] * chip.processors)


def filtered(p: Problem, kernel: str, moved: float, chip: Chip) -> float:
    """Return the microseconds of a kernel that filters: of its bytes, or of its instructions."""
    return max(moved / chip["memory"], issued(p, kernel, chip))


def over_maps(p: Problem, chip: Chip) -> dict[str, float]:
    """Return the microseconds of the launches over maps."""
    found = min(1.0, chip["kept"] * chip.l2 / p.S)  # of what is read again, from the end
    if p.op == "light_step" and p.forward:
        return {
            "pool": p.S / chip["memory"],
            "filters": filtered(p, "light_step_filters", (1.5 - found) * p.S, chip),
        }
    if p.op == "light_step":
        found = min(1.0, chip["kept"] * chip.l2 / (1.5 * p.S)) / 2  # of dout
        return {
            "tap sums": filtered(p, "light_step_tap_sums", 1.5 * p.S, chip),
            "filters": filtered(p, "light_step_maps_bwd", (1.5 - found) * p.S, chip),
            "parts": 2 * 4 * 20 * p.B * p.C / chip["cache"],  # of the filters' gradients, [B, 20 C], written and read
        }
    return {
        "pool": (1 if p.forward else 2) * p.S / chip["memory"],
        "rescale": (2 - found) * p.S / chip["memory"],
    }


def predicted(p: Problem, chip: Chip, which: int = LIKELY) -> tuple[float, Counter[str]]:
    """Return the microseconds of one pass, and how they are shared out."""
    in_cell, launches = cell(p, chip, which)
    of_maps = over_maps(p, chip)
    spent = Counter({**of_maps, "cell": in_cell, "launches": (len(of_maps) + launches) * chip["launch"]})
    if not p.forward:
        spent["weights"] = simulate.weight_gradients(p, chip)
    return spent.total(), spent


def scan_then(p: Problem, chip: Chip, which: int) -> float:
    """Return what the model says of the scan that was measured, with the tiles that it had."""
    most = 32 if p.C >= 1024 else 128
    step = (32, min(max(16, 1 << (p.R - 1).bit_length()), most))
    how = tiles_of(p)._replace(into=step, out_of=step, product=(32, 16), samples=1 if p.C < 1024 else p.C // 512)
    of_step, (hoisted, *_) = products(p)
    return chip["launch"] + alone(p.T, p.T, of_step, [hoisted], how, which)


def report_scans(chip: Chip) -> str:
    """Tabulate that, beside what was measured, as graphs."""
    found = json.loads((simulate.RESULTS / "h100-80gb-hbm3" / "bench.json").read_text())["rows"]
    measured = {row["name"]: 1e3 * row["ms"]["scan/triton graph"] for row in found if row["dtype"] == "bf16"}
    lines = []
    for name, p in (row for row in simulate.problems() if row[1].op == "layer_update" and row[1].forward):
        us = measured[name]
        worst, likely, best = (scan_then(p, chip, which) for which in range(3))
        span = f"{best:.0f}-{worst:.0f}"
        lines.append((name, f"{us:.0f}", f"{likely:.0f}", span, f"{likely / us:.2f}"))
    return table(("scan", "measured, us", "model", "span", "model / measured"), lines)


HEADER = ("row", "pass", "before", "predicted", "span", "wanted", "where it goes")


def report(device: str, parts: str = "") -> str:
    then = simulate.measured_then("triton") if device == "h100" else {}
    lines = []
    for name, p in simulate.problems(parts):
        worst, likely, best = (predicted(p, Chip.of(device, which), which) for which in range(3))
        largest = ", ".join(f"{k} {100 * v / likely[0]:.0f} %" for k, v in likely[1].most_common(3))
        share = SMALL_SHARE if p.op == "layer_update" and p.S <= LARGE else SHARES[p.op]
        wanted = moved(p) / Chip.of(device)["memory"] / share
        before = then.get((name, p.forward))
        said = "" if before is None else f"{before:.0f}"
        span = f"{best[0]:.0f}-{worst[0]:.0f}"
        lines.append((name, passed(p), said, f"{likely[0]:.0f}", span, f"{wanted:.0f}", largest))
    return f"{device}, bf16, us: predicted, and what was measured of the kernels before\n{table(HEADER, lines)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate_triton", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", choices=sorted(simulate.OTHERS), help="(default: all)")
    parser.add_argument("--rows", default="", metavar="PARTS", help="only rows whose name holds one, e.g. C64,C2048")
    args = parser.parse_args(argv)
    devices = [args.device] if args.device else sorted(simulate.OTHERS)
    print("\n\n".join([*(report(device, args.rows) for device in devices), report_scans(Chip.of("h100"))]))


if __name__ == "__main__":
    main()
