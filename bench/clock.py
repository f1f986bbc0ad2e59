"""Time candidates on a GPU, in interleaved rounds, each long enough for the clock, over inputs that take turns."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

from bench.devices import Call, Cuda, StandIn

REGION_MS = 3.0  # calls in a row take at least this long, so that neither the first launch nor the clock's step matters

Build = Callable[[], list[Call]]  # a candidate's calls, one for each set of inputs


def reason(why: BaseException) -> str:
    """Return in one line what failed. An error that reports a broken capture has the cause as its context."""
    root = why.__context__ or why
    return f"{type(root).__name__}: {(str(root).strip().splitlines() or [''])[0][:200]}"


def sampled(
    device: Cuda | StandIn,
    candidates: Iterable[tuple[str, Build]],
    op: str,
    rounds: int,
    seconds: float,
    notes: dict[str, str],
) -> dict[str, list[float]]:
    """Return the milliseconds of one call for each candidate in each round; note those that cannot be built."""
    ready: dict[str, tuple[Call, int]] = {}
    for name, build in candidates:
        try:
            calls = itertools.cycle(build())
            call: Call = partial(lambda calls: next(calls)(), calls)
            device.timed(call, 2)
            ready[name] = call, min(1000, math.ceil(REGION_MS / max(1e-3, device.timed(call, 2))))
        except Exception as why:  # a peer's failure, of whatever kind, is a note, not the end of the run
            notes[f"{op}/{name}"] = reason(why)
            device.release()  # raises if the device itself is in error, which ends the run
    samples: dict[str, list[float]] = {name: [] for name in ready}
    until = time.monotonic() + seconds
    for i in range(rounds):
        if i >= 5 and time.monotonic() > until:
            break
        for name, (call, times) in ready.items():
            samples[name].append(device.timed(call, times))
    ready.clear()
    device.release()
    return samples


def medians_and_spreads(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return medians as ``ms``, and the distances between the quartiles as ``iqr_ms``."""
    spreads = {}
    for key, times in samples.items():
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (0.0, 0.0, 0.0)
        spreads[key] = high - low
    return {"ms": {key: statistics.median(times) for key, times in samples.items()}, "iqr_ms": spreads}
