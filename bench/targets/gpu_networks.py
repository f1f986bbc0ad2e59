"""Measure a training step of whole networks on a GPU, and the attention tax: what attention adds to the plain step.

    python -m bench.targets.gpu_networks [--out FOLDER]

Weights are in fp32 under autocast to bf16, the optimizer is plain SGD. Each step runs as calls and, captured with its
optimizer, as one CUDA graph, by ours and by the reference. Networks are interleaved round by round, medians are quoted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import dla_kernels as dla
from bench.clock import medians_and_spreads, reason, sampled
from bench.common import MB
from bench.devices import Cuda, StandIn, new_results
from dla_kernels.terminal import table

ATTENTIONS = ("", "se_", "dia_", "dla_light_", "dla_base_")
OURS = ("dia_", "dla_light_", "dla_base_")  # those that are run by the reference too


class Setting(NamedTuple):
    """A family of networks that is measured, and the images of a step."""

    family: str
    batch: int
    size: int

    def __str__(self) -> str:
        return f"{self.family}, B = {self.batch}, {self.size}x{self.size}"


SETTINGS = (Setting("resnet50", 64, 224), Setting("resnet110", 128, 32))
REHEARSAL = (Setting("resnet20", 2, 8),)  # for the stand-in


class Step:
    """A network, its optimizer and a batch; calling it is a training step."""

    def __init__(self, name: str, backend: str | None, setting: Setting, device: Cuda | StandIn) -> None:
        torch.manual_seed(0)
        self.net = dla.create_model(name, backend=backend, num_classes=10).to(device.type)
        self.images = torch.randn(setting.batch, 3, setting.size, setting.size, device=device.type)
        self.labels = torch.randint(10, (setting.batch,), device=device.type)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 1e-3)
        self.on_gpu = device.type == "cuda"

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16) if self.on_gpu else nullcontext():
            loss = F.cross_entropy(self.net(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


def measure(setting: Setting, device: Cuda | StandIn, rounds: int, seconds: float) -> dict:
    notes: dict[str, str] = {}
    steps: dict[str, Step] = {}
    for attention in ATTENTIONS:
        name = f"{attention}{setting.family}"
        steps[name] = Step(name, None, setting, device)
        if attention in OURS:
            steps[f"{name}/reference"] = Step(name, "reference", setting, device)
    candidates: list[tuple[str, Callable[[], list]]] = []
    for name, step in steps.items():
        candidates += [(name, lambda step=step: [step]), (f"{name} graph", lambda step=step: device.captured([step]))]  # type: ignore[misc]
    samples = sampled(device, candidates, "step", rounds, seconds, notes)
    row: dict[str, Any] = {"setting": setting._asdict(), "name": str(setting), "samples": samples, "notes": notes}
    row |= medians_and_spreads(samples)
    row["launches"], row["peak_bytes"] = {}, {}
    for name, step in steps.items():
        try:
            row["launches"][name] = sum(device.launches(step).values())
            row["peak_bytes"][name] = device.peak_bytes(step)
        except Exception as why:  # the profiler may be out of order; memory may run out
            notes[f"count {name}"] = reason(why)
            device.synchronize()
    return row


def report(rows: list[dict]) -> str:
    parts = []
    for row in rows:
        ms, family, body = row["ms"], row["setting"]["family"], []
        for name in row["launches"] | dict.fromkeys(key for key in ms if not key.endswith(" graph")):
            line = [name]
            for how in ("", " graph"):
                time, plain = ms.get(f"{name}{how}"), ms.get(f"{family}{how}")
                line += [f"{time:.2f}" if time else "-"]
                line += [f"{time / plain - 1:.0%}" if time and plain and name != family else ""]
            launches, peak = row["launches"].get(name), row["peak_bytes"].get(name)
            body.append([*line, f"{launches:.0f}" if launches else "-", f"{peak / MB:.0f}" if peak else "-"])
        header = ["network", "ms", "tax", "graph, ms", "tax", "launches", "peak MB"]
        parts.append(f"a training step of {row['name']}, bf16 autocast\n{table(header, body)}")
        parts += [f"not measured: {what}: {why}" for what, why in row["notes"].items()]
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.targets.gpu_networks", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds at most (default 9)")
    parser.add_argument("--seconds", type=float, default=15.0, help="timing of one family, about (default 15)")
    parser.add_argument(
        "--families", default="", metavar="PARTS", help="only those whose name holds one, e.g. resnet110"
    )
    parser.add_argument("--stand-in", action="store_true", help="tiny networks on the CPU: rehearses, measures nothing")
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/results/latest/<device>)")
    args = parser.parse_args(argv)
    device = StandIn() if args.stand_in else Cuda()
    out, result = new_results(device, args.out)
    for setting in REHEARSAL if args.stand_in else SETTINGS:
        if not any(part in setting.family for part in args.families.split(",")):
            continue
        began = time.monotonic()
        result["rows"].append(measure(setting, device, args.rounds, args.seconds))
        print(f"{setting}: {time.monotonic() - began:.0f} s", flush=True)
        (out / "networks.json").write_text(json.dumps(result) + "\n")
        (out / "networks.txt").write_text(report(result["rows"]) + "\n")
        device.release()
    print(report(result["rows"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
