"""Measure the attention tax: what attention adds to a training step of a CIFAR ResNet, by ours and by peers; and what
the attention inside blocks adds to its inference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dla_kernels as dla
from bench.common import MB, Target, holds, interleaved, medians_ms
from bench.devices import Cpu
from bench.targets.published import base_step_by_copying
from dla_kernels import Cell
from dla_kernels.nn import DLABase
from dla_kernels.terminal import progress, table

BATCH, SIZE = 32, 32
LIMITS = {"dla_light": 0.5, "dla_base": 0.25, "dia": 0.4}  # of our tax over a peer's
PEERS = {"dla_light": ("eager",), "dla_base": ("eager", "copying"), "dia": ("eager",), "se": ("eager",)}
ATTENTIONS = {56: tuple(PEERS), 110: ("dla_light", "dla_base", "dia"), 164: ("dia",)}  # by depth
INFERENCE = {"dia": {}, "light": {"cell": Cell("dia", projection="light")}}  # DIA cells, as options of a network
INFERENCE_DEPTH = 164
ADDED = {"dia": 0.05, "light": 0.02}  # to the plain network's time, at most; the paper measures 0.12 and 0.01


class Copying(DLABase):
    """DLA-B as it is published: its steps copy all earlier maps."""

    def forward(self, t: int, x: Tensor, o_prev: Tensor | None = None, stage: Any = None) -> tuple[Tensor, Any]:
        layer = self.layers[t]
        o, stage, moments = base_step_by_copying(
            x,
            stage,
            layer.filters,
            self.cell.weights,
            heads=self.heads,
            cell=self.cell.cell,
            moments=self._wants_moments(layer.norm),
        )
        return self._add(x, o, layer.norm, moments), stage


class Step:
    """A network and a batch; calling it is a training step of plain SGD."""

    def __init__(self, name: str, how: str = "ours", batch: int = BATCH, size: int = SIZE) -> None:
        torch.manual_seed(0)
        self.net = dla.create_model(name, backend=None if how == "ours" else "reference")
        if how == "copying":
            for stage in self.net.stages:
                stage.attention.__class__ = Copying
        self.images = torch.randn(batch, 3, size, size)
        self.labels = torch.randint(10, (batch,))
        self.optimizer = torch.optim.SGD(self.net.parameters(), 1e-3)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def first_gradient(step: Step) -> Tensor:
    """Return the gradient of the first convolution, which has come through all other layers."""
    F.cross_entropy(step.net(step.images), step.labels).backward()
    return step.net.conv1.weight.grad


def check(name: str, ways: Sequence[str]) -> None:
    """Exit unless all ways make the same network: of the same weights, in fp64, they have the same gradient."""
    found = {}
    for how in ways:
        step = Step(name, how, batch=2, size=8)
        step.net.double()
        step.images = step.images.double()
        found[how] = first_gradient(step)
    for how, gradient in found.items():
        off = ((gradient - found["ours"]).norm() / gradient.norm()).item()
        if not off <= 1e-6:
            raise SystemExit(f"{name}: the gradient is off by {off:.1g} of that of {how}; not timing a wrong network")


def measure_depth(depth: int, rounds: int, batch: int = BATCH, size: int = SIZE) -> dict:
    steps = {"plain": Step(f"resnet{depth}", "ours", batch, size)}
    for attention in ATTENTIONS.get(depth, PEERS):
        name, ways = f"{attention}_resnet{depth}", ("ours", *PEERS[attention])
        for how in ways:
            steps[f"{attention}/{how}"] = Step(name, how, batch, size)
        check(name, ways)
    seconds = interleaved({name: partial(step) for name, step in steps.items()}, rounds)
    peaks = {name: Cpu().peak_bytes(step) for name, step in steps.items()}
    return {"depth": depth, "ms": medians_ms(seconds), "seconds": seconds, "peak_bytes": peaks}


class Inference:
    """A network and a batch; calling it is a forward pass of what is no longer trained."""

    def __init__(self, name: str, how: str = "ours", batch: int = BATCH, size: int = SIZE, **options: Any) -> None:
        torch.manual_seed(0)
        self.net = dla.create_model(name, backend=None if how == "ours" else "reference", **options).eval()
        self.images = torch.randn(batch, 3, size, size)

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return self.net(self.images)


def measure_inference(depth: int, rounds: int, batch: int = BATCH, size: int = SIZE) -> dict:
    calls = {"plain": Inference(f"resnet{depth}", "ours", batch, size)}
    for kind, options in INFERENCE.items():
        for how in ("ours", "eager"):
            calls[f"{kind}/{how}"] = Inference(f"dia_resnet{depth}", how, batch, size, **options)
        torch.testing.assert_close(calls[f"{kind}/ours"](), calls[f"{kind}/eager"](), rtol=1e-3, atol=1e-3)
    seconds = interleaved({name: partial(call) for name, call in calls.items()}, rounds)
    return {"depth": depth, "ms": medians_ms(seconds), "seconds": seconds}


def names() -> list[str]:
    return [f"resnet{depth}" for depth in ATTENTIONS]


def measure(rounds: int, wanted: str = "") -> list[dict]:
    depths = [depth for depth, name in zip(ATTENTIONS, names()) if holds(name, wanted)]
    return [measure_depth(depth, rounds) for depth in progress(depths, "networks")]


def infer(rounds: int, wanted: str = "") -> list[dict]:
    depths = [INFERENCE_DEPTH] if holds(f"resnet{INFERENCE_DEPTH}", wanted) else []
    return [measure_inference(depth, rounds) for depth in progress(depths, "inference")]


def tax(row: dict, name: str) -> float:
    return row["ms"][name] / row["ms"]["plain"] - 1


def targets(rows: list[dict]) -> list[tuple[str, Target]]:
    out = []
    for row in rows:
        for attention, limit in LIMITS.items():
            if f"{attention}/ours" not in row["ms"]:
                continue
            ours = tax(row, f"{attention}/ours")
            for peer in PEERS[attention]:
                theirs = tax(row, f"{attention}/{peer}")
                why = f"a tax of {ours:.0%}, allowed {limit * theirs:.0%}"
                name = f"{attention}_resnet{row['depth']}"
                out.append((name, Target(f"tax / {peer} tax", ours / theirs, limit, False, why)))
    return out


def report(rows: list[dict]) -> str:
    if not rows:
        return ""
    header, body = ["network", "how", "ms", "tax", "ours / its tax", "peak MB"], []
    for row in rows:
        for key, ms in row["ms"].items():
            attention, _, how = key.partition("/")
            name = f"resnet{row['depth']}"
            line = [name, "", f"{ms:.0f}", "", ""] if not how else [f"{attention}_{name}", how, f"{ms:.0f}"]
            if how:
                ratio = tax(row, f"{attention}/ours") / tax(row, key)
                line += [f"{tax(row, key):.0%}", f"{ratio:.2f}" if how != "ours" else ""]
            body.append([*line, f"{row['peak_bytes'][key] / MB:.0f}"])
    title = f"a training step, B = {BATCH}, {SIZE}x{SIZE} images; tax: what attention adds to the plain network's time"
    return f"{title}\n{table(header, body)}"


def inference_targets(rows: list[dict]) -> list[tuple[str, Target]]:
    out = []
    for row in rows:
        for kind, limit in ADDED.items():
            why = f"{row['ms'][f'{kind}/ours']:.0f} ms, plain {row['ms']['plain']:.0f}"
            added = tax(row, f"{kind}/ours")
            out.append((f"resnet{row['depth']}", Target(f"{kind}, added to inference", added, limit, False, why)))
    return out


def inference_report(rows: list[dict]) -> str:
    if not rows:
        return ""
    header, body = ["network", "cell", "how", "ms", "added"], []
    for row in rows:
        for key, ms in row["ms"].items():
            kind, _, how = key.partition("/")
            added = f"{100 * tax(row, key):.1f}%" if how else ""
            body.append([f"resnet{row['depth']}", kind if how else "", how, f"{ms:.0f}", added])
    return f"inference, B = {BATCH}, {SIZE}x{SIZE} images; added: to the plain network's time\n{table(header, body)}"
