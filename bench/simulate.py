"""Predict what layer_update, light_step and recalibrate take on a GPU: a model of its processors, second-level cache
and memory runs the plan, tile by tile and phase by phase. No GPU is needed, and nothing here is measured but where a
constant says so.

    python -m bench.simulate [--device h100] [--rows PARTS] [--constants] [--then]

Groups of blocks take tiles through their phases. A phase either waits (a chain of instructions, an exchange) or
streams: as fast as what its threads have asked for arrives, as they can issue their instructions, and as it gets a
share of the memory and the cache, which all who stream at the time divide among themselves. At every end of a phase the
speeds are worked out anew. So whole waves, and a memory that idles while all groups scan, come out by themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import torch

from bench import simulate_phases
from bench.common import HERE, Shape, holds
from bench.simulate_targets import passed, wanted
from bench.targets import blocks, gpu_steps
from bench.targets.gpu_inputs import ROWS
from bench.targets.steps import CELL, Row
from dla_kernels.cells import PAPER_DSU, Cell
from dla_kernels.cuda_plan import DEVICES, cuda_plan
from dla_kernels.terminal import table

RECORD = HERE.parent / "tools" / "resources" / "machine_code.json"
RESULTS = HERE / "results"


class Constant(NamedTuple):
    """What is assumed of a chip: as bad as may be, likely, as good as may be."""

    worst: float
    likely: float
    best: float
    source: str


MACHINE = "measured on an H100, bench/machine.cu"
FITTED = "fitted to an H100's rows, csrc/cuda/planner.h"
REASONED = "unmeasured: instructions counted, cycles assumed"
# Bytes a microsecond, microseconds, multiplications a microsecond of a processor.
CHIP = {
    "memory": Constant(2.80e6, 2.94e6, 3.05e6, f"{MACHINE}: a copy; a read"),
    "cache": Constant(5.0e6, 5.2e6, 6.0e6, f"{MACHINE}: read twice, little between"),
    "kept": Constant(0.40, 0.50, 0.60, f"{MACHINE}: read twice, share of the cache that is found again"),
    "latency": Constant(0.60, 0.42, 0.35, f"{MACHINE}: 4 KB in flight on a processor"),
    "issue": Constant(1.7e3, 2.4e3, 3.4e3, "1, 1.4, 2 instructions of warps a cycle, 1.7 GHz; fitted to light_step"),
    "shared": Constant(1.1e5, 1.5e5, 2.0e5, "of shared memory, 128 bytes a cycle at best; unmeasured"),
    "launch": Constant(2.0, 1.55, 1.2, f"{MACHINE}: in a graph, 264 blocks"),
    "prologue": Constant(4.0, 2.0, 1.0, f"before the first byte of a map is asked for; {REASONED}"),
    "push": Constant(0.61, 0.43, 0.39, f"{MACHINE}: exchange by pushing"),
    "pull": Constant(1.04, 0.95, 0.92, f"{MACHINE}: exchange by pulling"),
    "chain": Constant(1.5, 0.9, 0.5, f"a hot step's instructions, one after the other; {REASONED}"),
    "cold step": Constant(4.0, 3.5, 3.0, f"for each sample; {FITTED}"),
    "cold products": Constant(7e3, 9e3, 12e3, FITTED),
    "unstaged weights": Constant(1.5e4, 2e4, 3e4, "bytes of them; fitted to 309 layouts, bench.targets.gpu_plans"),
    "products": Constant(1.5e4, 4e4, 1e5, f"of many rows at once; {REASONED}"),
    "phase products": Constant(4e4, 6.5e4, 9e4, "of tiles: 128 of 251 instructions of a slab; unmeasured"),
    "phase": Constant(1.5, 1.0, 0.6, f"a product's first slab and its last sums; {REASONED}"),
    "slab": Constant(1.5, 1.2, 0.9, "of weight gradients, 32 rows of the batch: one row of the measured table"),
}
OTHERS = {
    "h100": {},
    "h200": {
        "memory": Constant(4.0e6, 4.2e6, 4.4e6, "4.8 TB/s on its data sheet, times an H100's share of its own"),
    },
}
LIKELY = 1


class Chip(NamedTuple):
    """A device with one choice of its constants."""

    name: str
    processors: int
    l2: int
    values: dict[str, float]

    @classmethod
    def of(cls, name: str, which: int = LIKELY) -> Chip:
        device = DEVICES[name]
        return cls(name, device.processors, device.l2, {k: c[which] for k, c in (CHIP | OTHERS[name]).items()})

    def __getitem__(self, constant: str) -> float:
        return self.values[constant]


class Loop(NamedTuple):
    """One turn of a thread of a streaming loop."""

    instructions: float
    ahead: int  # bytes that are asked for before the first is used
    moved: int  # bytes that are read


class Phase(NamedTuple):
    """What a group does with a tile until its next phase: it waits, or streams."""

    name: str
    waits: float = 0  # microseconds
    reads: float = 0  # bytes
    found: float = 0  # the share of them that the second-level cache has
    writes: float = 0
    loop: Loop = Loop(0, 1, 1)


class Launch(NamedTuple):
    """Groups of blocks, and the phases that each goes through."""

    groups: list[list[Phase]]
    blocks: int  # of a group
    threads: int


# ---- the model ----


def alone(phase: Phase, launch: Launch, chip: Chip, sharing: int) -> float:
    """Return the microseconds of a phase that has the memory to itself, and `sharing` groups on its processors."""
    if phase.waits:
        return phase.waits
    arriving = phase.reads / (phase.loop.ahead * launch.threads * launch.blocks) * chip["latency"]
    warps = phase.loop.instructions * phase.reads / phase.loop.moved / 32
    return max(arriving, warps / chip["issue"] * sharing / launch.blocks, 1e-6)


def simulate(launch: Launch, chip: Chip) -> tuple[float, Counter[str]]:
    """Return the microseconds until the last group is done, and those that a group spends in each phase on average."""
    groups = launch.groups
    seats = max(1, chip.processors // launch.blocks)  # groups that have processors of their own; the next share them
    at, left = [0] * len(groups), [1.0] * len(groups)
    now, spent = 0.0, Counter[str]()
    active = [g for g, phases in enumerate(groups) if phases]
    while active:
        streaming = Counter(g % seats for g in active if not groups[g][at[g]].waits)
        speed = {}
        memory = cached = 0.0
        for g in active:
            phase = groups[g][at[g]]
            speed[g] = 1 / alone(phase, launch, chip, streaming[g % seats])
            if not phase.waits:
                memory += (phase.reads * (1 - phase.found) + phase.writes) * speed[g]
                cached += (phase.reads + phase.writes) * speed[g]
        slower = max(1.0, memory / chip["memory"], cached / chip["cache"])
        for g in active:
            if not groups[g][at[g]].waits:
                speed[g] /= slower
        step = min(left[g] / speed[g] for g in active)
        now += step
        for g in active:
            spent[groups[g][at[g]].name] += step / len(groups)
            left[g] -= step * speed[g]
            if left[g] < 1e-9:
                at[g], left[g] = at[g] + 1, 1.0
        active = [g for g in active if at[g] < len(groups[g])]
    return now, spent


# ---- what the kernels do ----


@cache
def loops() -> dict[str, Loop]:
    """Return the streaming loops, as the gate counted their machine code for sm_90, of bf16 maps."""
    counted = {row[0]: row for row in json.loads(RECORD.read_text())["rows"] if row[1] == 90}
    # Phase -> the loop on record, and the bytes that one turn of it reads.
    of = {
        "pool": ("pool planes", 4 * 16),
        "rescale": ("rescale planes", 3 * 16),
        "filters": ("filter of two maps", 16 * 2 * 2),
        "correlate": ("sums for two filters", 8 * 3 * 2),
        "filters back": ("gradients of two maps", 16 * 2),
        "add": ("scale and add planes", 2 * 2 * 16),
        "masked sums": ("sums behind a relu", 2 * 3 * 16),
        "masked gradients": ("gradients behind a relu", 2 * 2 * 16),
    }
    return {phase: Loop(counted[name][2], counted[name][4], read) for phase, (name, read) in of.items()}


# As they were when bench/results/h100-80gb-hbm3 was measured: no step was hot, the filter held 766 instructions, and
# the loop that rescales 1253, of which 60 % are taken to be special cases. All others are taken to be today's.
LOOPS_THEN = {"rescale": Loop(500, 64, 64), "filters": Loop(766, 96, 64)}


class Problem(NamedTuple):
    """One pass of layer_update, of light_step, whose two layers are its two maps, or of recalibrate, which has one."""

    op: str
    forward: bool
    T: int
    B: int
    C: int
    HW: int
    R: int
    cell: Cell

    @property
    def sample_bytes(self) -> int:
        return 2 * self.T * self.C * self.HW**2  # bf16

    @property
    def S(self) -> int:
        return self.B * self.sample_bytes

    @property
    def recurs(self) -> bool:
        """Whether the state goes through products; else y alone does, to a number for each channel."""
        return self.cell.projection not in ("squeeze", "light")

    @property
    def gates(self) -> int:
        return self.cell.num_gates if self.recurs else 1


def waits_of(p: Problem, plan: dict, nb: int, chip: Chip) -> dict[str, float]:
    """Return what the cell takes for a tile of nb samples: what is hoisted, the scan, the refresh."""
    G, cs, gates = plan["blocks_per_tile"], plan["channels_per_block"], p.gates
    steps = 0 if not p.recurs else 1 if p.op == "light_step" else p.T
    resident = -(-plan["tiles_in_flight"] * G // chip.processors)
    w1, w2 = p.R * cs, gates * cs * p.R  # multiplications of a row in a block
    rows, times = p.T * nb, 1 if p.forward else 2
    chunks = -(-p.T // plan["layers_per_exchange"])
    batch = rows * (times * w1 + (2 * times - 1) * w2) / chip["products"] * resident
    if plan["hot_steps"]:
        # Each weight is read once for every sample, and the numbers that it meets beside it.
        bytes_ = 4 * (w1 + w2) * nb * 1.5
        step = chip["chain"] * (1 + 0.3 * (nb - 1)) + bytes_ / chip["shared"] * resident + (G > 1) * chip["push"]
        scan = steps * step
    else:
        unstaged = 0 if plan["weights_in_shared"] else 4 * (w1 + w2)
        step = (G > 1) * chip["pull"] + chip["cold step"] * nb
        step += ((w1 + w2) * nb / chip["cold products"] + unstaged / chip["unstaged weights"]) * resident
        scan = steps * step * (1 if p.forward else 2.2)
    exchange = chip["pull"] if G > 1 else 0
    if not p.recurs:  # there; and backward there once more, and back
        batch = rows * (w1 + w2) / chip["products"] * resident
    if p.op == "recalibrate":  # all products are hoisted, but for those of the step; and backward all come back
        return {"cell ahead": batch + exchange, "scan": scan, "cell behind": 1 if p.forward else batch + exchange}
    return {"cell ahead": batch / 3 + exchange, "scan": scan, "refresh": batch * 2 / 3 + chunks * (exchange + 1)}


class Kernels(NamedTuple):
    """What the kernels are taken to be: the loops that differ from those on record, and what they are spared."""

    loops: tuple[tuple[str, Loop], ...] = ()
    hot: bool = True
    phases: bool = True
    spared: str = ""

    def loop(self, name: str) -> Loop:
        found = {**loops(), **dict(self.loops)}[name]
        return found._replace(instructions=0) if self.spared == "instructions" else found


NOW = Kernels()
THEN = Kernels(tuple(LOOPS_THEN.items()), hot=False, phases=False)


def tile_phases(p: Problem, plan: dict, nb: int, found: float, chip: Chip, kernels: Kernels) -> list[Phase]:
    maps = nb * p.sample_bytes
    cell = {k: 1e-3 if kernels.spared == "cell" else v for k, v in waits_of(p, plan, nb, chip).items()}
    waits = [Phase(name, waits=time) for name, time in cell.items()]
    if p.op == "layer_update":
        first = Phase("pool", reads=maps if p.forward else 2 * maps, loop=kernels.loop("pool"))
        last = Phase("rescale", reads=maps, found=found, writes=maps, loop=kernels.loop("rescale"))
    elif p.op == "light_step" and p.forward:
        first = Phase("pool", reads=maps, loop=kernels.loop("pool"))
        last = Phase("filters", reads=maps, found=found, writes=maps / 2, loop=kernels.loop("filters"))
    elif p.op == "recalibrate" and p.forward:
        first = Phase("pool", reads=maps, loop=kernels.loop("pool"))
        last = Phase("add", reads=2 * maps, found=found / 2, writes=maps, loop=kernels.loop("add"))
    elif p.op == "recalibrate":
        first = Phase("sums", reads=3 * maps, loop=kernels.loop("masked sums"))
        last = Phase("gradients", reads=2 * maps, found=found, writes=2 * maps, loop=kernels.loop("masked gradients"))
    else:
        first = Phase("correlate", reads=1.5 * maps, loop=kernels.loop("correlate"))
        last = Phase("filters", reads=maps / 2, found=found, writes=maps, loop=kernels.loop("filters back"))
    return [first, *waits, last]


# Maps that the backward pass reads first, for each that forward reads.
READ_BACKWARD = {"layer_update": 2, "light_step": 1.5, "recalibrate": 3}


def plan_of(p: Problem, device: str, group: int = 0, samples: int = 0, phases: int = -1) -> dict[str, Any]:
    """Return the plan, of so many blocks and samples a tile if these are given: that of layer_update, whose backward
    pass reads two maps of each layer."""
    pixels = p.HW**2 if p.forward else int(p.HW**2 * READ_BACKWARD[p.op] / READ_BACKWARD["layer_update"])
    shape = p.T, p.B, p.C, pixels, p.R
    chip = DEVICES[device]._replace(group=group, samples=samples, phases=phases)
    return cuda_plan(*shape, dtype=torch.bfloat16, cell=p.cell, backward=not p.forward, device=chip)


def found_near(p: Problem, samples: int, chip: Chip, kernels: Kernels) -> float:
    """Return the share of the second reading that the cache has, where between a byte's two readings it meets the maps
    of so many samples."""
    between = samples * p.sample_bytes * (1 if p.forward else READ_BACKWARD[p.op])
    return 1.0 if kernels.spared == "second reading" else min(1.0, chip["kept"] * chip.l2 / between)


def launch_of(p: Problem, plan: dict, chip: Chip, kernels: Kernels) -> Launch:
    nb, G = plan["samples_per_tile"], plan["blocks_per_tile"]
    tiles = [min(nb, p.B - b0) for b0 in range(0, p.B, nb)]
    count = min(plan["tiles_in_flight"], len(tiles))
    found = found_near(p, count * nb, chip, kernels)
    staged = 4 * p.R * plan["channels_per_block"] * (1 + p.gates) * plan["weights_in_shared"] * G
    # They come while the first maps are being pooled, as the cache's share; all but the first block's are there.
    begin = Phase("begin", waits=chip["prologue"] + staged * count / chip["cache"])
    of_tile = {size: tile_phases(p, plan, size, found, chip, kernels) for size in set(tiles)}
    groups = [[begin, *(phase for size in tiles[g::count] for phase in of_tile[size])] for g in range(count)]
    return Launch(groups, G, plan["threads"])


def weight_gradients(p: Problem, chip: Chip) -> float:
    """Return the microseconds of the launch that multiplies the factors of the weights' gradients."""
    rows = (2 * p.T if p.op == "layer_update" else p.T) * p.B  # of the scan, and of the refresh
    slabs = -(-rows // 256)  # of 32 rows, of one of eight blocks that share a piece
    gates, middle = -(-p.gates * p.C // 32), -(-p.R // 32)
    # Of W1 for h and for y, of W2 and of the bias, which split has for both.
    pieces = middle * (1 + p.recurs) * -(-p.C // 32) + (2 if p.cell.projection == "split" else 1) * gates * (middle + 1)
    rounds = -(-pieces * 8 // (chip.processors * 3))  # blocks that run at once, three on a processor
    return chip["launch"] + rounds * slabs * chip["slab"]


def predicted(
    p: Problem, chip: Chip, kernels: Kernels = NOW, plan: dict[str, Any] | None = None
) -> tuple[float, Counter[str]]:
    """Return the microseconds of one pass, and how they are shared out among its phases."""
    plan = plan or plan_of(p, chip.name, phases=-1 if kernels.phases else 0)
    if plan["path"] == "in-phases":
        first, *_, last = tile_phases(p, plan, p.B, found_near(p, p.B, chip, kernels), chip, kernels)
        spent = simulate_phases.predicted(p, chip, [first, last], kernels.spared)
        if not p.forward:
            spent["weights"] = weight_gradients(p, chip)
        return spent.total(), spent
    plan = plan | {"hot_steps": plan["hot_steps"] and kernels.hot}
    end, spent = simulate(launch_of(p, plan, chip, kernels), chip)
    spent["begin"] += chip["launch"]
    total = end + chip["launch"]
    if not p.forward:
        spent["weights"] = weight_gradients(p, chip)
        total += spent["weights"]
    return total, spent


# ---- what comes of it ----


def waits_for(p: Problem, chip: Chip) -> str:
    """Return what a row would gain most by being spared."""
    whole, _ = predicted(p, chip)
    plan = plan_of(p, chip.name)
    causes = {
        "the second reading of maps from memory": "second reading",
        "instructions of streaming loops": "instructions",
        "the cell" if plan["weights_in_shared"] or not p.recurs else "the cell, whose weights do not fit": "cell",
    }
    gains = {said: 1 - predicted(p, chip, Kernels(spared=spared))[0] / whole for said, spared in causes.items()}
    cause = max(gains, key=gains.__getitem__)
    return f"{cause}: {100 * gains[cause]:.0f} %"


def layer_problems(shape: Shape) -> list[Problem]:
    of = (shape.T, shape.B, shape.C, shape.HW, shape.R, PAPER_DSU)
    return [Problem("layer_update", forward, *of) for forward in (True, False)]


def step_problems(row: Row) -> list[Problem]:
    return [Problem("light_step", forward, 2, row.B, row.C, row.HW, row.R, CELL) for forward in (True, False)]


def block_problems(row: blocks.Row) -> list[Problem]:
    of = (1, row.B, row.C, row.HW, row.shape.R, blocks.CELLS[row.cell])
    return [Problem("recalibrate", forward, *of) for forward in (True, False)]


def problems(parts: str = "") -> list[tuple[str, Problem]]:
    rows = [(str(shape), p) for shape in ROWS[:8] for p in layer_problems(shape)]
    rows += [(f"light_step {layer}", p) for layer in gpu_steps.LAYERS for p in step_problems(layer)]
    ends = [blocks.Row(row.B, row.C, row.HW, cell, True) for cell in blocks.CELLS for row in gpu_steps.LAYERS]
    rows += [(f"recalibrate {row}", p) for row in ends for p in block_problems(row)]
    return [(name, p) for name, p in rows if holds(name, parts)]


def line(name: str, p: Problem, device: str) -> list[str]:
    chip = Chip.of(device)
    (worst, _), (likely, spent), (best, _) = (predicted(p, Chip.of(device, which)) for which in range(3))
    allowed = wanted(p, chip)
    largest = ", ".join(f"{k} {100 * v / spent.total():.0f} %" for k, v in spent.most_common(3))
    missed = "" if likely <= allowed else waits_for(p, chip)
    return [name, passed(p), f"{likely:.0f}", f"{best:.0f}-{worst:.0f}", f"{allowed:.0f}", largest, missed]


HEADER = ("row", "pass", "us", "span", "wanted", "where it goes", "above that; most would be gained without")


def report(device: str, parts: str = "") -> str:
    rows = [line(name, p, device) for name, p in problems(parts)]
    return f"{device}, bf16: predicted, not measured\n{table(HEADER, rows)}"


def measured_then(whose: str = "ours") -> dict[tuple[str, bool], float]:
    """Return the microseconds that were measured on an H100, by row and whether forward."""
    found: dict[tuple[str, bool], float] = {}
    result = json.loads((RESULTS / "h100-80gb-hbm3" / "bench.json").read_text())
    for kind, name in (("rows", "{}"), ("layers", "light_step {}")):
        for row in result[kind]:
            if row["dtype"] == "bf16":
                forward, both = (1e3 * row["ms"][f"{op}/{whose} graph"] for op in ("forward", "forward+backward"))
                found |= {(name.format(row["name"]), True): forward, (name.format(row["name"]), False): both - forward}
    return found


def report_then(parts: str = "") -> str:
    """Tabulate what the model says of the kernels that were measured, beside what was measured."""
    found, rows = measured_then(), []
    for name, p in problems(parts):
        if (name, p.forward) in found:
            us = found[name, p.forward]
            worst, likely, best = (predicted(p, Chip.of("h100", which), THEN)[0] for which in range(3))
            rows.append(
                (name, passed(p), f"{us:.0f}", f"{likely:.0f}", f"{best:.0f}-{worst:.0f}", f"{likely / us:.2f}")
            )
    text = table(("row", "pass", "measured, us", "model", "span", "model / measured"), rows)
    if parts:
        return text
    count, mean, spread = off_by()
    return f"{text}\n{count} layouts of tiles: model / measured {mean:.2f}, give or take a factor of {spread:.2f}"


def off_by() -> tuple[int, float, float]:
    """Return how many layouts of tiles were measured, and over what was measured what the model says of them: its mean,
    and how far they are from it, both as factors."""
    chip = Chip.of("h100")
    measured = json.loads((RESULTS / "h100-80gb-hbm3" / "plans.json").read_text())["rows"]
    logs = []
    for row in measured:
        of = {passed(p): p for name, p in problems() if name == row["name"]}
        for key, ms in row["ms"].items():
            layout, _, which = key.partition("/")
            if found := re.fullmatch(r"(\d)x(\d)", layout):
                group, samples = map(int, found.groups())
                plan = plan_of(of[which], "h100", group, samples)
                if (plan["blocks_per_tile"], plan["samples_per_tile"]) == (group, samples):  # there is room for them
                    logs.append(math.log(predicted(of[which], chip, THEN, plan)[0] / (1e3 * ms)))
    return len(logs), math.exp(statistics.mean(logs)), math.exp(statistics.pstdev(logs))


def constants() -> str:
    rows = [
        (f"{name}{'' if not of else ', ' + of}", *(f"{v:g}" for v in c[:3]), c.source)
        for of, values in (("", CHIP), *((k, v) for k, v in OTHERS.items() if v))
        for name, c in values.items()
    ]
    return table(("constant", "worst", "likely", "best", "source"), rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", choices=sorted(OTHERS), help="(default: all)")
    parser.add_argument("--rows", default="", metavar="PARTS", help="only rows whose name holds one, e.g. C64,C2048")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--constants", action="store_true", help="what is assumed of the chips, and where it is from")
    what.add_argument("--then", action="store_true", help="what the model says of the kernels that were measured")
    args = parser.parse_args(argv)
    if args.constants:
        print(constants())
    elif args.then:
        print(report_then(args.rows))
    else:
        print("\n\n".join(report(device, args.rows) for device in ([args.device] if args.device else sorted(OTHERS))))


if __name__ == "__main__":
    main()
