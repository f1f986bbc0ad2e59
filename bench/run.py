"""The runner behind `make bench`: tables of ours beside eager, torch.compile and a copy; JSON; a plot."""

from __future__ import annotations

import argparse
import json
import subprocess
from functools import partial
from pathlib import Path

import torch

import dla_kernels as dla
from bench import common, plot
from bench.common import SHAPES, Inputs, Shape
from dla_kernels import reference
from dla_kernels.__main__ import system
from dla_kernels.terminal import progress, table

HERE = Path(__file__).parent
MB = 1e6


def candidates(inputs: Inputs, with_compile: bool) -> dict[str, dict[str, object]]:
    """For each measured op, its candidates by name; each is called without arguments."""
    peers = {"eager": reference}
    ops = {
        "scan": {name: partial(f.scan, inputs.y, inputs.weights) for name, f in peers.items()},
        "forward": {name: partial(f.layer_update, inputs.xs, inputs.weights) for name, f in peers.items()},
        "forward+backward": {name: partial(inputs.forward_backward, f.layer_update) for name, f in peers.items()},
    }
    if with_compile:
        # Each shape is compiled for itself, as a user who calls it in a loop would have it.
        torch._dynamo.reset()
        scan = torch.compile(reference.scan, dynamic=False)
        update = torch.compile(reference.layer_update, dynamic=False)
        ops["scan"]["compile"] = partial(scan, inputs.y, inputs.weights)
        ops["forward"]["compile"] = partial(update, inputs.xs, inputs.weights)
        ops["forward+backward"]["compile"] = partial(inputs.forward_backward, update)
    ops["scan"]["ours"] = partial(dla.scan, inputs.y, inputs.weights)
    ops["forward"]["ours"] = partial(dla.layer_update, inputs.xs, inputs.weights)
    ops["forward"]["ours in place"] = inputs.inplace
    ops["forward+backward"]["ours"] = partial(inputs.forward_backward, dla.layer_update)
    return ops


def measure(shape: Shape, rounds: int, with_compile: bool) -> dict:
    inputs = Inputs(shape)
    error, allowed = common.check_parity(inputs)
    if not error <= allowed:
        raise SystemExit(f"{shape}: layer_update is off by {error:.3g}, allowed {allowed:.3g}; not timing a wrong op")
    named = {"copy/copy": inputs.copy}
    for op, by_name in candidates(inputs, with_compile).items():
        named |= {f"{op}/{name}": call for name, call in by_name.items()}
    seconds = common.interleaved(named, rounds)
    return {
        "shape": shape._asdict(),
        "name": str(shape),
        "S": shape.S,
        "parity": {"error": error, "allowed": allowed},
        "ms": common.medians_ms(seconds),
        "seconds": seconds,
    }


class Target:
    """A promise about one measured ratio; ratios above the limit (or below, for `most`) keep it."""

    def __init__(self, name: str, ratio: float, least: float | None = None, most: float | None = None) -> None:
        self.name, self.ratio, self.least, self.most = name, ratio, least, most

    @property
    def met(self) -> bool:
        return self.ratio >= self.least if self.least is not None else self.ratio <= self.most

    @property
    def limit(self) -> str:
        return f">= {self.least}" if self.least is not None else f"<= {self.most}"


def targets(row: dict) -> list[Target]:
    """What issue-level targets say of one row: ratios to the better of eager and compile, and to a copy."""
    ms, large = row["ms"], row["S"] > 20 * MB

    def speedup(op: str) -> float:
        peers = [ms[key] for key in (f"{op}/eager", f"{op}/compile") if key in ms]
        return min(peers) / ms[f"{op}/ours"]

    out = [
        Target("scan", speedup("scan"), least=2.5),
        Target("forward", speedup("forward"), least=1.5 if large else 2.0),
        Target("forward+backward", speedup("forward+backward"), least=1.5),
    ]
    if large:
        out.append(Target("forward / copy", ms["forward/ours"] / ms["copy/copy"], most=1.25))
        out.append(Target("in place / copy", ms["forward/ours in place"] / ms["copy/copy"], most=1.0))
    return out


def report(rows: list[dict]) -> str:
    parts = []
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
    checks = [(row["name"], target) for row in rows for target in targets(row)]
    missed = [(name, t) for name, t in checks if not t.met]
    parts.append(f"targets: {len(checks) - len(missed)} of {len(checks)} met")
    if missed:
        body = [(name, t.name, f"{t.ratio:.2f}", t.limit) for name, t in missed]
        parts[-1] += "\n" + table(("missed", "what", "measured", "target"), body)
    return "\n\n".join(parts)


def commit() -> str:
    out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return out.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dla_kernels bench", description=__doc__)
    parser.add_argument("--shapes", default="", metavar="TEXT", help="only shapes whose name holds TEXT, e.g. C256")
    parser.add_argument("--rounds", type=int, default=31, help="interleaved rounds (default 31)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu", help="folder for the JSON and the plot")
    args = parser.parse_args()
    common.restart_with_allocator()
    torch.set_num_threads(args.threads)
    shapes = [shape for shape in SHAPES if args.shapes in str(shape)]
    if not shapes:
        parser.error(f"--shapes: expected a part of one of {', '.join(map(str, SHAPES))}, got {args.shapes!r}")
    rows = [measure(shape, args.rounds, not args.no_compile) for shape in progress(shapes, "bench")]
    result = {"system": system(), "commit": commit(), "allocator": common.ALLOCATOR, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(rows)
    (args.out / "bench.json").write_text(json.dumps(result, indent=1))
    (args.out / "bench.txt").write_text(text + "\n")
    plot.speedups(rows, args.out / "bench.png")
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result["system"].items():
        print(f"{name:12} {value}")
    print(f"{'allocator':12} {' '.join(f'{k}={v}' for k, v in common.ALLOCATOR.items())}\n")
    print(text)
    print(f"\nwritten: {', '.join(str(args.out / name) for name in ('bench.json', 'bench.txt', 'bench.png'))}")


if __name__ == "__main__":
    main()
