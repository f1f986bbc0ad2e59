"""Plans of how the CUDA backend runs ``layer_update`` on a device, which need not be here: ``csrc/cuda/planner.h``."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch

from .cells import PAPER_DSU, Cell, accumulate_dtype


class Device(NamedTuple):
    """The facts that a plan looks at; the same fields as in ``csrc/cuda/plan.h``, sizes in bytes."""

    processors: int
    shared_per_block: int
    shared_per_processor: int
    l2: int
    largest_cluster: int
    threads: int = 256
    group: int = 0  # blocks of a tile, if not the plan shall decide; and
    samples: int = 0  # samples of one
    phases: int = -1  # whether the cell runs a phase a launch, 0 or 1, likewise


DEVICES = {
    "a100": Device(108, 166912, 167936, 40 << 20, 1),
    "h100": Device(132, 232448, 233472, 50 << 20, 8),
    "h200": Device(132, 232448, 233472, 60 << 20, 8),
}


def cuda_plan(
    T: int,
    B: int,
    C: int,
    HW: int,
    R: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    cell: Cell = PAPER_DSU,
    backward: bool = False,
    device: str | Device = "h200",
) -> dict[str, Any]:
    """Return the plan for T maps [B, C, H, W] of ``dtype`` with HW pixels each, and bottleneck width R.

    >>> cuda_plan(12, 128, 256, 64, 64)["path"]
    'weights-bound'
    """
    described = DEVICES[device] if isinstance(device, str) else device
    maps = 2 if backward else 1
    return json.loads(
        torch.ops.dla.cuda_plan(
            backward,
            cell.projection,
            cell.num_gates,
            T,
            B,
            C,
            R,
            maps * T * C * HW * dtype.itemsize,
            accumulate_dtype(dtype).itemsize,
            list(described),
        )
    )
