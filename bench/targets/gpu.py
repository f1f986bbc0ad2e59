"""Run the GPU benchmarks: `python -m dla_kernels bench --device cuda`.

Ours stands beside the eager reference, both also as CUDA graphs, torch.compile if asked for, cuDNN's LSTM for the
scan, and a copy of the same bytes. Candidates are interleaved round by round over inputs that rotate past
the L2 cache; medians are quoted. A wrong op is not timed. Results are written after every row, so a run
that is cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import dla_kernels as dla
from bench import compiles
from bench.clock import medians_and_spreads, reason, sampled
from bench.common import LATEST, Shape, commit
from bench.devices import Call, Cuda, StandIn, slug
from bench.report import gpu_tables, plot
from bench.targets import gpu_steps
from bench.targets.gpu_inputs import DTYPES, REHEARSAL, ROWS, Inputs, Set, layer_update_parity, scan_parity
from dla_kernels import reference
from dla_kernels.verify import largest_error

COMPILE = ("none", "default", "max-autotune", "max-autotune-no-cudagraphs")
OPS = ("forward", "forward+backward", "scan")

Log = Callable[[str], None]


def over(inputs: Inputs, call: Callable[[Set], object]) -> list[Call]:
    return [partial(call, one) for one in inputs.sets]


def compiled(function: Callable, mode: str) -> Callable:
    function = torch.compile(function, mode=None if mode == "default" else mode, dynamic=False)
    if mode != "max-autotune" or not torch.cuda.is_available():
        return function

    def step(*args: object) -> object:
        # From here on the CUDA graphs of max-autotune may reuse the memory of earlier outputs.
        torch.compiler.cudagraph_mark_step_begin()
        return function(*args)

    return step


def backends(inputs: Inputs) -> list[tuple[str, Any]]:
    triton = [("triton", inputs.triton)] if inputs.triton else []
    return [("ours", inputs.ours), *triton, ("eager", reference)]


def candidates(inputs: Inputs, op: str, mode: str) -> Iterator[tuple[str, Callable[[], list[Call]]]]:
    """Yield (name, builder of its calls, one per set). A peer that cannot be built is left out with its reason."""
    captured = inputs.device.captured

    def calls(f: Any) -> list[Call]:
        if op == "scan":
            return over(inputs, lambda one: f.scan(one.y, inputs.weights))
        return over(inputs, partial(inputs.forward if op == "forward" else inputs.forward_backward, f.layer_update))

    def compiled_calls() -> list[Call]:
        return calls(SimpleNamespace(**{n: compiled(getattr(reference, n), mode) for n in ("scan", "layer_update")}))

    yield "copy", lambda: over(inputs, inputs.copy)
    for name, f in backends(inputs):
        yield name, partial(calls, f)
        yield f"{name} graph", lambda f=f: captured(calls(f))  # type: ignore[misc]
    if mode != "none":
        yield "compile", compiled_calls
    if mode in ("default", "max-autotune-no-cudagraphs"):  # max-autotune makes CUDA graphs itself
        yield "compile graph", lambda: captured(compiled_calls())
    if op == "scan":
        lstm, dense = inputs.lstm()
        yield "ours lstm", lambda: over(inputs, lambda one: inputs.ours.scan(one.y, dense, cell=dla.Cell("lstm")))
        yield "cudnn lstm", lambda: over(inputs, lambda one: lstm(one.y_rounded))


def measure_op(inputs: Inputs, op: str, args: argparse.Namespace, notes: dict[str, str]) -> dict[str, list[float]]:
    """Return the milliseconds of one call, for each candidate in each round."""
    with torch.set_grad_enabled(op == "forward+backward"):
        found = candidates(inputs, op, args.compile)
        return sampled(inputs.device, found, op, args.rounds, args.row_seconds / len(OPS), notes)


def check(inputs: Inputs, notes: dict[str, str]) -> dict[str, dict]:
    """Return the parity of what is about to be timed; note how far cuDNN's LSTM is from ours."""
    lstm, dense = inputs.lstm()
    found = {
        "layer_update": layer_update_parity(inputs),
        "scan": scan_parity(inputs, dla.PAPER_DSU, inputs.weights),
        "scan lstm": scan_parity(inputs, dla.Cell("lstm"), dense),
    }
    if inputs.triton:
        found["layer_update triton"] = layer_update_parity(inputs, inputs.triton)
    try:
        with torch.no_grad():
            one = inputs.sets[0]
            theirs, ours = lstm(one.y_rounded)[0], inputs.ours.scan(one.y, dense, cell=dla.Cell("lstm"))[0]
        notes["cudnn lstm"] = f"differs from ours by {largest_error([theirs], [ours.double()]):.1e}"
    except RuntimeError as why:
        notes["cudnn lstm"] = reason(why)
    return {
        op: {"error": error, "allowed": allowed, "passed": error <= allowed} for op, (error, allowed) in found.items()
    }


def count(inputs: Inputs, notes: dict[str, str]) -> tuple[dict, dict]:
    """Return the launches per call, and the peak memory beyond the inputs."""
    launches, memory = {}, {}
    for name, f in backends(inputs):
        calls: dict[str, Callable[[], Call]] = {
            "forward": lambda f=f: partial(inputs.forward, f.layer_update, inputs.sets[0]),  # type: ignore[misc]
            "backward": lambda f=f: inputs.backward_only(f.layer_update),  # type: ignore[misc]
            "forward+backward": lambda f=f: partial(inputs.forward_backward, f.layer_update, inputs.sets[0]),  # type: ignore[misc]
        }
        for op, build in calls.items():
            try:
                with torch.set_grad_enabled(op != "forward"):
                    call = build()
                    if op != "forward+backward":
                        launches[f"{op}/{name}"] = inputs.device.launches(call)
                    if op != "backward":
                        memory[f"{op}/{name}"] = inputs.device.peak_bytes(call)
            except Exception as why:  # the profiler may be out of order; memory may run out
                notes[f"count {op}/{name}"] = reason(why)
                inputs.device.synchronize()
    return launches, memory


def measure(shape: Shape, dtype: str, device: Cuda | StandIn, args: argparse.Namespace) -> dict:
    if args.compile != "none":
        # Each shape is compiled for itself, as a user who calls it in a loop would have it.
        torch._dynamo.reset()
    inputs = Inputs(shape, dtype, device)
    notes: dict[str, str] = {}
    row: dict[str, Any] = {
        "shape": shape._asdict(),
        "name": str(shape),
        "dtype": dtype,
        "S": inputs.S,
        "sets": len(inputs.sets),
    }
    row |= {"parity": check(inputs, notes), "notes": notes, "ms": {}, "iqr_ms": {}, "samples": {}}
    wrong = [op for op, result in row["parity"].items() if not result["passed"]]
    if wrong:
        notes["parity"] = f"{', '.join(wrong)} off by more than allowed: not timed"
        return row
    device.release()
    copies = []
    for op in OPS:
        samples = measure_op(inputs, op, args, notes)
        copies += samples.pop("copy", [])
        row["samples"] |= {f"{op}/{name}": times for name, times in samples.items()}
    row["samples"]["copy/copy"] = copies
    row |= medians_and_spreads(row["samples"])
    row["launches"], row["peak_bytes"] = count(inputs, notes)
    return row


def brief(row: dict) -> str:
    """Return one line on a row that is done."""
    ms = row["ms"]
    parts = [f"copy {1e3 * ms['copy/copy']:.0f}"]
    for op in OPS:
        times = [f"{name} {1e3 * ms[f'{op}/{name}']:.0f}" for name in gpu_tables.names([row], op) if "lstm" not in name]
        parts.append(f"{op}: {', '.join(times)}")
    return "us: " + "; ".join(parts)


def write(out: Path, result: dict) -> str:
    """Write the JSON, and the tables beside it, by renaming, so that a run cut short leaves no half file."""
    out.mkdir(parents=True, exist_ok=True)
    text = gpu_tables.report(result)
    for name, content in (("bench.json", json.dumps(result)), ("bench.txt", text + "\n")):
        (out / f"{name}.new").write_text(content)
        (out / f"{name}.new").rename(out / name)
    return text


def chosen(rows: tuple, parts: str) -> list:
    """Return the rows whose name holds one of the comma-separated parts, in the order of the parts."""
    return list(dict.fromkeys(row for part in parts.split(",") for row in rows if f"{part.strip('-')}-" in f"{row}-"))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dla_kernels bench --device cuda", description=__doc__)
    parser.add_argument("--rows", default="", metavar="PARTS", help="only rows whose name holds one, e.g. B8-C64,C2048")
    parser.add_argument("--dtypes", default="bf16,fp32", help="of the maps, comma-separated (default bf16,fp32)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds at most (default 15)")
    parser.add_argument("--row-seconds", type=float, default=2.0, help="timing of one row, about (default 2)")
    parser.add_argument("--budget", type=float, default=math.inf, help="begin no row after so many seconds")
    parser.add_argument("--compile", choices=COMPILE, default="none", help="also time torch.compile in this mode")
    parser.add_argument(
        "--add", action="store_true", help="keep the rows that --out holds and this run does not repeat"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--stand-in", action="store_true", help="tiny rows on the CPU: rehearses, measures nothing")
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/results/latest/<device>)")
    args = parser.parse_args(argv)
    args.dtypes = args.dtypes.split(",")
    if not set(args.dtypes) <= set(DTYPES):
        parser.error(f"--dtypes: expected some of {', '.join(DTYPES)}, got {','.join(args.dtypes)}")
    all_rows = REHEARSAL if args.stand_in else ROWS
    all_layers = gpu_steps.REHEARSAL if args.stand_in else gpu_steps.LAYERS
    args.layers = chosen(all_layers, args.rows) if args.rows else list(all_layers)
    args.rows = chosen(all_rows, args.rows) if args.rows else list(all_rows)
    if not args.rows and not args.layers:
        parser.error(f"--rows: expected parts of {', '.join(map(str, (*all_rows, *all_layers)))}")
    return args


def merged(kind: str, new: list[dict], earlier: list[dict]) -> list[dict]:
    """Return the new rows and those earlier ones that they do not repeat, in the order of the lists."""
    listed = {"rows": (*ROWS, *REHEARSAL), "layers": (*gpu_steps.LAYERS, *gpu_steps.REHEARSAL)}[kind]
    order = {(str(row), dtype): i for i, (dtype, row) in enumerate(itertools.product(DTYPES, listed))}
    again = {(r["name"], r["dtype"]) for r in new}
    rows = [*new, *(r for r in earlier if (r["name"], r["dtype"]) not in again)]
    return sorted(rows, key=lambda r: order[r["name"], r["dtype"]])


def run(args: argparse.Namespace, device: Cuda | StandIn, log: Log) -> tuple[int, dict, str]:
    """Measure all chosen rows; return (exit status, results, report)."""
    out = args.out or LATEST / slug(device.name)
    result: dict[str, Any] = {"system": device.facts(), "commit": commit(), "rows": [], "layers": []}
    earlier = json.loads((out / "bench.json").read_text()) if args.add and (out / "bench.json").exists() else {}
    measures = {"rows": (measure, brief), "layers": (gpu_steps.measure, gpu_steps.brief)}
    began, text = time.monotonic(), ""
    todo = [(kind, dtype, row) for dtype in args.dtypes for kind in measures for row in getattr(args, kind)]
    for i, (kind, dtype, shape) in enumerate(todo):
        spent = time.monotonic() - began
        if spent > args.budget:
            result["left_out"] = [f"{dtype} {row}" for _, dtype, row in todo[i:]]
            log(f"budget of {args.budget:.0f} s used up; left out: {', '.join(result['left_out'])}")
            break
        measured, said = measures[kind]
        try:
            row = measured(shape, dtype, device, args)
        except torch.OutOfMemoryError as why:
            log(f"{dtype} {shape}: {str(why).splitlines()[0]}")
            device.release()
            continue
        line = said(row) if row["ms"] else row["notes"]["parity"]
        log(f"[{i + 1}/{len(todo)} {time.monotonic() - began:4.0f} s] {dtype} {shape} x{row['sets']}: {line}")
        result[kind].append({**row, "compile": args.compile})
        everything = {**result, **{kind: merged(kind, result[kind], earlier.get(kind, [])) for kind in measures}}
        text = write(out, everything)
        device.release()
    if not text:
        return 1, result, "nothing was measured"
    timed = [r for r in everything["rows"] if r["ms"] and r["dtype"] == args.dtypes[0]]
    if timed:
        plot.drawn(plot.speedups, timed, out / "bench.png")
    wrong = [row for kind in measures for row in result[kind] if not row["ms"]]
    return int(bool(wrong)), everything, f"{text}\n\nwritten: {out}"


def main(argv: list[str] | None = None, device: Cuda | StandIn | None = None) -> int:
    args = arguments(argv)
    device = device or (StandIn() if args.stand_in else Cuda())
    log = partial(print, flush=True) if not args.json else lambda text: None
    with compiles.counted() as triton:
        status, result, text = run(args, device, log)
    if triton:
        log(str(triton))
    print(json.dumps(result) if args.json else text)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
