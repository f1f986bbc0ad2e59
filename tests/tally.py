"""This module counts the cases of a robustness run, and makes the commands that repeat what failed."""

from __future__ import annotations

import shlex
import threading
import traceback
from collections.abc import Callable

import torch


def command(*options: object) -> str:
    """Return the command of a run with these options, on as many threads: the reference's rounding depends on them."""
    return shlex.join(
        ["env", f"OMP_NUM_THREADS={torch.get_num_threads()}", "python", "-m", "tests.soak", *map(str, options)]
    )


class Tally:
    """A tally counts cases and failures of one kind, and tells a failure at once, with the command that repeats it."""

    def __init__(self, what: str, again: str = "") -> None:
        self.what, self.again, self.cases, self.failures = what, again, 0, 0
        self._lock = threading.Lock()  # for the counts: the cases themselves may come from many threads at once

    def check(self, name: str, case: Callable[[], object], again: str | None = None) -> None:
        error = None
        try:
            case()
        except Exception as why:
            error = "".join(traceback.format_exception(why))
        self._count(name, again, error)

    def expect(self, name: str, holds: bool, again: str | None = None) -> None:
        self._count(name, again, None if holds else "")

    def _count(self, name: str, again: str | None, error: str | None) -> None:
        with self._lock:
            self.cases += 1
            if error is not None:
                self.failures += 1
                print(f"FAILED {self.what}: {name}\nagain: {again or self.again}\n{error}", flush=True)
