"""How many kernels Triton compiled in a run of the benchmarks, how long it took, and how many it had kept of earlier
runs: a newcomer waits for the first of these numbers before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Compiles:
    """What Triton's listener is told."""

    def __init__(self) -> None:
        self.compiled = self.kept = 0
        self.microseconds = 0.0

    def __call__(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        if cache_hit:
            self.kept += 1
        else:
            self.compiled += 1
            self.microseconds += times.total

    def __str__(self) -> str:
        return f"triton: {self.compiled} kernels compiled in {self.microseconds / 1e6:.0f} s, {self.kept} kept"


@contextmanager
def counted() -> Iterator[Compiles | None]:
    """Count while the block runs; nothing, where there is no Triton."""
    try:
        from triton import knobs
    except ImportError:
        yield None
        return
    compiles, before = Compiles(), knobs.compilation.listener
    knobs.compilation.listener = compiles
    try:
        yield compiles
    finally:
        knobs.compilation.listener = before
