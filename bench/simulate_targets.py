"""What a pass that is predicted is to take: the targets beside which the model's tables stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.targets.gpu_inputs import PASSES

if TYPE_CHECKING:
    from bench.simulate import Chip, Problem

# Of a copy's bandwidth over what each map moves once or twice: the target of large rows.
SHARES = {"layer_update": 0.85, "light_step": 0.75, "recalibrate": 1 / 1.3}


def wanted(p: Problem, chip: Chip) -> float:
    """Return the microseconds that a pass is to take. Those of layer_update are told by what a single reading of its
    maps from memory takes, which no kernel goes below: what is read twice is to be found near."""
    if p.op != "layer_update":
        return moved(p) / chip["memory"] / SHARES[p.op]
    most = {7: 2.0, 14: 1.25, 28: 1.25, 56: 1.25} if p.forward else {7: 2.0}
    return most.get(p.HW, 1.3 if p.forward else 1.35) * PASSES[passed(p)][0] * p.S / chip["memory"]


def moved(p: Problem) -> float:
    """Return the bytes over which targets are stated: maps that layer_update reads twice, and the others once."""
    if p.op == "light_step":
        return 1.5 * p.S if p.forward else 2.5 * p.S
    if p.op == "recalibrate":
        return 3 * p.S if p.forward else 5 * p.S
    return PASSES[passed(p)][1] * p.S


def passed(p: Problem) -> str:
    return "forward" if p.forward else "backward"
