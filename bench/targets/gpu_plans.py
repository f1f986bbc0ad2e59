"""Try every way to lay layer_update out on a GPU, blocks and samples of a tile, or phases, beside what the plan chose.

    python -m bench.targets.gpu_plans [--rows PARTS] [--out FOLDER]

Each runs as a CUDA graph, in bf16: the forward pass, and the backward pass as the time beyond it. The constants of the
plan (csrc/cuda/planner.h) are to choose what is nearly the best here; a plan that had no room for so many samples took
fewer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.clock import reason
from bench.common import Shape
from bench.devices import Call, Cuda, StandIn, new_results
from bench.targets.gpu import chosen
from bench.targets.gpu_inputs import REHEARSAL, ROWS, Inputs, layer_update_parity
from dla_kernels.terminal import table

PLAN = "plan"  # what the plan chooses itself
PHASES = "phases"  # the cell in launches of its own
WAYS = (PLAN, PHASES, *(f"{group}x{samples}" for group in (1, 2, 4, 8) for samples in (1, 2, 3, 4, 8)))
VARIABLES = ("DLA_KERNELS_GROUP", "DLA_KERNELS_SAMPLES", "DLA_KERNELS_PHASES")


def lay_out(way: str) -> None:
    """Choose the layout for the launches to come."""
    values = () if way == PLAN else ("", "", "1") if way == PHASES else way.split("x")
    for variable in VARIABLES:
        os.environ.pop(variable, None)
    os.environ.update({variable: value for variable, value in zip(VARIABLES, values) if value})


def timed(device: Cuda | StandIn, calls: list[Call], rounds: int) -> float:
    """Return the milliseconds of one call, the median of a few rounds of some milliseconds."""
    turns = itertools.cycle(calls)
    call = partial(lambda turns: next(turns)(), turns)
    times = min(200, max(2, int(2 / max(1e-3, device.timed(call, 3)))))
    return statistics.median(device.timed(call, times) for _ in range(rounds))


def measure(shape: Shape, device: Cuda | StandIn, rounds: int) -> dict:
    inputs = Inputs(shape, "bf16", device)
    lay_out(PLAN)
    error, allowed = layer_update_parity(inputs)
    row: dict[str, Any] = {"name": str(shape), "S": inputs.S, "error": error, "allowed": allowed, "ms": {}, "notes": {}}
    if not error <= allowed:
        row["notes"]["parity"] = "off by more than allowed: not timed"
        return row
    device.release()
    row["ms"]["copy"] = timed(device, [partial(inputs.copy, one) for one in inputs.sets], rounds)
    sets = inputs.sets[:4]
    for way in WAYS:
        lay_out(way)
        try:
            with torch.no_grad():
                forward = [partial(inputs.forward, inputs.ours.layer_update, one) for one in sets]
                row["ms"][f"{way}/forward"] = timed(device, device.captured(forward), rounds)
            with torch.enable_grad():
                both = [partial(inputs.forward_backward, inputs.ours.layer_update, one) for one in sets]
                time = timed(device, device.captured(both), rounds)
                row["ms"][f"{way}/backward"] = time - row["ms"][f"{way}/forward"]
        except Exception as why:  # a layout that cannot run is a note
            row["notes"][way] = reason(why)
        device.release()
    lay_out(PLAN)
    return row


def report(rows: list[dict]) -> str:
    """Tabulate microseconds. The floor is the time of a copy, which moves 2S; the backward pass needs at least 3S."""
    body = []
    for row in rows:
        ms = row["ms"]
        line = [row["name"], f"{1e3 * ms['copy']:.0f}" if "copy" in ms else "-"]
        for op in ("forward", "backward"):
            found = {key.partition("/")[0]: time for key, time in ms.items() if key.endswith(f"/{op}")}
            own = found.pop(PLAN, None)
            best = min(found, key=found.__getitem__, default=None)
            line += [f"{1e3 * own:.0f}" if own else "-"]
            line += [f"{1e3 * found[best]:.0f}", best] if best else ["-", ""]
        body.append(line)
    header = ["shape", "floor", "forward: plan", "best", "blocks x samples", "backward: plan", "best", ""]
    return f"layer_update, bf16, us: what the plan chose, and the best of {len(WAYS) - 1} ways\n{table(header, body)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.targets.gpu_plans", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rows", default="", metavar="PARTS", help="only rows whose name holds one, e.g. B8-C64,C2048")
    parser.add_argument("--rounds", type=int, default=5, help="of each layout (default 5)")
    parser.add_argument("--stand-in", action="store_true", help="tiny rows on the CPU: rehearses, measures nothing")
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/results/latest/<device>)")
    args = parser.parse_args(argv)
    device = StandIn() if args.stand_in else Cuda()
    out, result = new_results(device, args.out)
    rows = REHEARSAL if args.stand_in else ROWS
    for shape in chosen(rows, args.rows) if args.rows else rows[:8]:
        result["rows"].append(measure(shape, device, args.rounds))
        print(report(result["rows"][-1:]).splitlines()[-1], flush=True)
        (out / "plans.json").write_text(json.dumps(result) + "\n")
        device.release()
    print(report(result["rows"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
