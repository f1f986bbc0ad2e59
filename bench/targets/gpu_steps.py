"""Measure light_step on a GPU: one layer of DLA-L beside the eager reference, both also as CUDA graphs, and a copy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.clock import Build, medians_and_spreads, reason, sampled
from bench.common import MB, Target, target_table
from bench.devices import Call, Cuda, StandIn
from bench.targets.gpu_inputs import DTYPES, copies_needed, triton_on
from bench.targets.steps import Layer, Row, layer_parity
from dla_kernels import reference
from dla_kernels.terminal import table
from dla_kernels.verify import functions

IMAGENET = (Row(256, 256, 56), Row(256, 512, 28), Row(256, 1024, 14), Row(256, 2048, 7))
LAYERS = (*IMAGENET, Row(128, 64, 32), Row(128, 128, 16), Row(128, 256, 8))
REHEARSAL = (Row(2, 8, 3),)  # for the stand-in
OPS = ("forward", "forward+backward")
SAMPLES = 4  # parity is checked for so many: samples are independent
COPIED = 4 / 3  # the bytes that a copy of two maps moves, over those of a forward pass: two maps read, one written


def backends(device: Cuda | StandIn) -> list[tuple[str, Any]]:
    triton = triton_on(device)
    return [("ours", functions(device.backend)), *([("triton", triton)] if triton else []), ("eager", reference)]


def measure(row: Row, dtype: str, device: Cuda | StandIn, args: argparse.Namespace) -> dict:
    S = row.S // 4 * DTYPES[dtype].itemsize
    count = copies_needed(4 * S, device.l2_bytes, device.free_bytes())  # 4 S: each has its leaves and buffers too
    layers = [Layer(row, DTYPES[dtype], device.type) for _ in range(count)]
    notes: dict[str, str] = {}
    found: dict[str, Any] = {"name": str(row), "dtype": dtype, "S": S, "sets": count, "notes": notes, "launches": {}}
    error, allowed = layer_parity(layers[0], device.backend, SAMPLES)
    found["parity"] = {"error": error, "allowed": allowed, "passed": error <= allowed}
    found |= {"ms": {}, "iqr_ms": {}, "samples": {}}
    if not error <= allowed:
        notes["parity"] = "light_step off by more than allowed: not timed"
        return found
    device.release()
    for op in OPS:

        def calls(f: Any, op: str = op) -> list[Call]:
            run: Callable = Layer.forward if op == "forward" else Layer.forward_backward
            return [partial(run, layer, f.light_step) for layer in layers]

        candidates: list[tuple[str, Build]] = [("copy", lambda: [layer.copy for layer in layers])]
        for name, f in backends(device):
            candidates += [
                (name, partial(calls, f)),
                (f"{name} graph", lambda f=f, calls=calls: device.captured(calls(f))),  # type: ignore[misc]
            ]
        with torch.set_grad_enabled(op != "forward"):
            samples = sampled(device, candidates, op, args.rounds, args.row_seconds / len(OPS), notes)
        found["samples"].setdefault("copy/copy", []).extend(samples.pop("copy", []))
        found["samples"] |= {f"{op}/{name}": times for name, times in samples.items()}
    found |= medians_and_spreads(found["samples"])
    for name, f in backends(device):
        try:
            found["launches"][f"forward/{name}"] = device.launches(partial(layers[0].forward, f.light_step))
        except Exception as why:  # the profiler may be out of order
            notes[f"count {name}"] = reason(why)
            device.synchronize()
    return found


def shares(row: dict) -> dict[str, float]:
    """Return the share of a copy's bandwidth that a forward pass reaches over the bytes of its three maps."""
    ms = row["ms"]
    return {name: ms["copy/copy"] / COPIED / ms[f"forward/{name}"] for name in names([row], "forward")}


def names(rows: list[dict], op: str) -> list[str]:
    found = [key.partition("/")[2] for row in rows for key in row["ms"] if key.startswith(f"{op}/")]
    return list(dict.fromkeys(found))


def brief(row: dict) -> str:
    """Return one line on a row that is done."""
    return "us: " + "; ".join(f"{key} {1e3 * time:.0f}" for key, time in row["ms"].items())


def targets(row: dict) -> list[Target]:
    out = []
    if row["name"] in map(str, IMAGENET):
        share = max(shares(row)[name] for name in ("ours", "ours graph") if name in shares(row))
        why = f"3 maps are {3 * row['S'] / MB:.0f} MB"
        out.append(Target("light_step forward: 3 maps / copy bandwidth", share, 0.75, True, why))
    counted = row["launches"].get("forward/ours")
    if counted:
        why = f"{counted['kernels']:g} kernels, {counted['copies']:g} copies"
        out.append(Target("light_step forward: launches", sum(counted.values()), 1, False, why))
    return out


def report(rows: list[dict]) -> str:
    timed, parts = [row for row in rows if row["ms"]], []
    for dtype in dict.fromkeys(row["dtype"] for row in timed):
        of_dtype = [row for row in timed if row["dtype"] == dtype]
        for op in OPS:
            columns = names(of_dtype, op)
            header = ["layer", "map MB", "copy", *columns, *(["share of copy"] if op == "forward" else [])]
            body = []
            for row in of_dtype:
                ms = row["ms"]
                line = [row["name"], f"{row['S'] / MB:.1f}", f"{1e3 * ms['copy/copy']:.1f}"]
                line += [f"{1e3 * ms[f'{op}/{name}']:.1f}" if f"{op}/{name}" in ms else "-" for name in columns]
                body.append(line + ([f"{max(shares(row).values()):.2f}"] if op == "forward" else []))
            parts.append(f"{dtype}: light_step (DLA-L), {op}; us, medians\n{table(header, body)}")
    notes = [(f"{r['dtype']} {r['name']}", what, why) for r in rows for what, why in r["notes"].items()]
    if notes:
        parts.append(table(("not measured", "what", "why"), notes))
    checks = [(f"{row['dtype']} {row['name']}", target) for row in timed for target in targets(row)]
    if checks:
        met = sum(target.met for _, target in checks)
        parts.append(f"{target_table(checks, 'target')}\nlight_step: {met} of {len(checks)} targets met")
    return "\n\n".join(parts)
