"""Choosing tiles by measurement, for those who want it: the first call of an op with new C, R, HW or dtype tries
the candidates below beside the table's choice, and the fastest serves from then on, for any batch.

Bits may then differ from one process to the next, since sums are cut otherwise.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from . import tiles

CANDIDATES: tuple[dict[str, int], ...] = (  # for all launches of the op
    {},
    {"warps": 4},
    {"warps": 16},
    {"samples": 2},
    {"samples": 4},
    {"stages": 3},
)
enabled = os.environ.get("DLA_KERNELS_TRITON_AUTOTUNE", "0") not in ("", "0")


def autotune(on: bool = True) -> None:
    """Switch the choice of tiles by measurement on or off; DLA_KERNELS_TRITON_AUTOTUNE=1 does so from the
    start."""
    global enabled
    enabled = on


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call."""
    from triton.testing import do_bench

    return do_bench(call, return_mode="median")


def tuned(function: Callable) -> Callable:
    """Let the first call of a function choose its tiles, where that is switched on. It is called again and again, so it
    must write nothing but its results."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        if enabled:
            new: list[tiles.Question] = []  # that nothing is chosen for
            asking = tiles.asked.set(new)
            try:
                result = function(*args)
            finally:
                tiles.asked.reset(asking)
            if not new:
                return result
            best = fastest(functools.partial(function, *args))
            tiles.chosen.update(dict.fromkeys(new, best))
        return function(*args)

    return wrapper


def fastest(call: Callable[[], object]) -> dict[str, int]:
    """Return the candidate with which the call takes the least time."""
    times = []
    for candidate in CANDIDATES:
        tiles.trial.update(candidate)
        try:
            times.append(milliseconds(call))
        finally:
            tiles.trial.clear()
    return CANDIDATES[times.index(min(times))]
