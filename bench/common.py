"""Shapes, targets and the clock that all benchmarks share.

Two things drown CPU figures if left alone. Fresh outputs cost page faults that vary threefold from run
to run: benchmark processes run with ALLOCATOR set, so that freed memory is kept. And a clock that
times one candidate after the other sees the machine's other tenants change: candidates are interleaved
round by round in one process, and medians and ratios are what is quoted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dla_kernels.terminal import table

HERE = Path(__file__).parent
MB = 1e6
LATEST = HERE / "results" / "latest"  # where results go unless told otherwise; what is published lies beside it
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(4 << 30), "MALLOC_MMAP_THRESHOLD_": str(4 << 30)}


def restart_with_allocator() -> None:
    """Run this process again with ALLOCATOR in its environment, unless it is there."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.environ.update(ALLOCATOR)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's starts and stops
        os.execv(sys.executable, sys.orig_argv)


class Shape(NamedTuple):
    """One stage, which has T maps [B, C, HW, HW] and a joint DSU of reduction r."""

    T: int
    B: int
    C: int
    HW: int
    r: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-C{self.C}-HW{self.HW}x{self.HW}-r{self.r}"

    @property
    def R(self) -> int:
        return max(1, self.C // self.r)

    @property
    def S(self) -> int:
        """Return the bytes of all maps in fp32."""
        return 4 * self.T * self.B * self.C * self.HW**2


SHAPES = (
    Shape(6, 32, 64, 32, 4),
    Shape(6, 32, 128, 16, 4),
    Shape(6, 32, 256, 8, 4),
    Shape(12, 16, 256, 8, 4),
    Shape(3, 8, 256, 56, 20),
    Shape(6, 8, 1024, 14, 20),
    Shape(3, 8, 2048, 7, 20),
)


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each candidate in each round: one call of each per round, after two to warm up."""
    for candidate in candidates.values():
        candidate()
        candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians_ms(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def holds(name: str, parts: str) -> bool:
    """Return whether one of the comma-separated parts is in a name."""
    return any(part in name for part in parts.split(","))


class Target(NamedTuple):
    """A promise about one measured ratio, and what stands in its way where it is not kept."""

    name: str
    ratio: float
    limit: float
    at_least: bool
    why: str

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit}"

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def target_table(checks: Sequence[tuple[str, Target]], title: str) -> str:
    """Tabulate targets, given as pairs (row, target)."""
    body = [(n, t.name, f"{t.ratio:.2f}", t.wanted, t.why) for n, t in checks]
    return table((title, "what", "measured", "target", "where it goes"), body)


def commit() -> str:
    """Return the commit that is measured, with -dirty where the tree differs from it."""
    # As root in another user's tree, git refuses to answer unless told that it may.
    command = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]
    try:
        found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        found = ""
    return found or os.environ.get("DLA_KERNELS_COMMIT", "unknown")  # for a tree without its history
