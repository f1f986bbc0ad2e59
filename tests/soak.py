"""Puts the ops under what users do to them, for minutes: `make soak`, or `python -m tests.soak --minutes 1`.

Random shapes, layouts, dtypes, cells and backends against the reference; threads that call at once; DataLoader
workers; interrupts; memory that runs out. It prints the seed that repeats a run, and how many cases failed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS
from dla_kernels.terminal import table

from .calls import check_parity, named, outcome
from .cases import (
    CELLS,
    DTYPES,
    LAYOUT_NAMES,
    OPS,
    OPS_WITH_CELL,
    Shape,
    cell_name,
    dtype_name,
    inputs_of,
    options_of,
    state_forms,
)
from .conftest import COMPILED, Served
from .tolerances import assert_same_bits

SOME = Shape.parse("T4-B6-C33-R8-HW14x14")


class Tally:
    """Cases and failures of one kind; a failure is told at once."""

    def __init__(self, what: str) -> None:
        self.what, self.cases, self.failures = what, 0, 0

    def check(self, name: str, case: Callable[[], object]) -> None:
        self.cases += 1
        try:
            case()
        except Exception as error:
            self.failures += 1
            print(f"FAILED {self.what}: {name}\n{''.join(traceback.format_exception(error))}", flush=True)

    def expect(self, name: str, holds: bool) -> None:
        self.cases += 1
        if not holds:
            self.failures += 1
            print(f"FAILED {self.what}: {name}", flush=True)


# ---- random cases ----


def drawn(rng: random.Random) -> tuple[Shape, dict]:
    """A shape and how its maps lie in memory; widths beside those of vectors come often."""
    sides = lambda: rng.choice((rng.randint(1, 9), rng.choice((16, 31, 65))))  # noqa: E731
    T = rng.randint(1, 6)
    sizes = tuple((sides(), sides()) for _ in range(rng.randint(1, T)))
    C = rng.choice((rng.randint(1, 20), rng.choice((31, 32, 33, 47, 64, 65, 129))))
    dtype = rng.choice(DTYPES)
    weights = rng.choice([dtype] if dtype == torch.float64 else [dtype, torch.float32])
    how = {"dtype": dtype, "layout": rng.choice(LAYOUT_NAMES), "weight_dtype": weights}
    return Shape(T, rng.randint(1, 10), C, rng.randint(1, 40), sizes), how


def parity(rng: random.Random, backend: Served) -> tuple[str, Callable[[], None]]:
    """(the name of a case, the case)"""
    op, cell, seed = rng.choice(OPS), rng.choice(CELLS), rng.randrange(2**31)
    shape, how = drawn(rng)
    if op in OPS_WITH_CELL:
        how["form"] = rng.choice(state_forms(cell) if op == "refresh" else (None, *state_forms(cell)))
    told = [f"{key} {dtype_name(value) if isinstance(value, torch.dtype) else value}" for key, value in how.items()]
    name = f"{op} {backend.name} {shape} {cell_name(cell) if op in OPS_WITH_CELL else ''} {', '.join(told)} seed {seed}"

    def case() -> None:
        torch.manual_seed(seed)
        inputs = inputs_of(op, shape, cell, device=backend.device, **how)
        check_parity(op, backend, inputs, shape.longest_sum, **options_of(op, cell))

    return name, case


def random_cases(rng: random.Random, backends: list[Served], seconds: float) -> Iterator[Tally]:
    for backend in backends:
        tally, until = Tally(f"parity, {backend.name}"), time.monotonic() + seconds / len(backends)
        while time.monotonic() < until:
            tally.check(*parity(rng, backend))
            if sys.stderr.isatty():
                print(f"\r{tally.what}: {tally.cases} cases", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
        yield tally


# ---- the same call from many places ----


def calls_for(backend: Served) -> dict[str, Callable[[], dict[str, torch.Tensor]]]:
    """Each op, forward and backward, as a call whose outcome is always the same."""
    calls = {}
    for op in OPS:
        torch.manual_seed(len(calls))
        cell = CELLS[len(calls) % len(CELLS)]
        inputs = inputs_of(op, SOME, cell, torch.float32, device=backend.device)
        options = {**options_of(op, cell), "backend": backend.name}
        outputs = outcome(getattr(dla, op), inputs, **options)
        torch.manual_seed(0)
        cotangents = {name: torch.randn_like(x) for name, x in outputs.items()}
        calls[op] = lambda op=op, i=inputs, c=cotangents, o=options: outcome(getattr(dla, op), i, c, **o)
    return calls


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_same_bits(ours[name], theirs[name], name)


def threads(backend: Served, rounds: int = 25) -> Tally:
    """All ops from four threads at once, in another order each."""
    tally, calls = Tally(f"threads at once, {backend.name}"), calls_for(backend)
    alone = {op: call() for op, call in calls.items()}
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(rounds):
            op = rng.choice(list(calls))
            found = calls[op]()
            with lock:
                tally.check(op, lambda: same(found, alone[op]))  # noqa: B023

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return tally


class Updated(torch.utils.data.Dataset):
    """Samples that a forked worker refreshes itself."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        R, C = SOME.R, SOME.C
        self.weights = dla.Joint(torch.randn(R, 2 * C), torch.randn(3 * C, R), torch.zeros(3 * C))
        self.xs = torch.randn(32, SOME.T, 1, C, 14, 14)

    def __len__(self) -> int:
        return len(self.xs)

    def __getitem__(self, i: int) -> torch.Tensor:
        out, _ = dla.layer_update(list(self.xs[i]), self.weights, backend="cpu")
        return torch.stack(out)


def forked_workers() -> Tally:
    """DataLoader workers forked from a process that has used all its threads."""
    tally, samples = Tally("forked DataLoader workers, cpu"), Updated()
    alone = [samples[i] for i in range(len(samples))]
    loader = torch.utils.data.DataLoader(samples, num_workers=2, multiprocessing_context="fork", timeout=60)
    for i, (found,) in enumerate(loader):
        tally.check(f"sample {i}", lambda: assert_same_bits(found, alone[i]))  # noqa: B023
    tally.expect("every sample came", tally.cases == len(samples))
    return tally


def interrupts(backend: Served, seconds: float) -> Tally:
    """Ctrl-C at any moment: the next calls are right, in this thread and for the same tensors."""
    tally, calls = Tally(f"interrupted calls, {backend.name}"), calls_for(backend)
    alone = {op: call() for op, call in calls.items()}
    rng, until, interrupted = random.Random(0), time.monotonic() + seconds, 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while time.monotonic() < until:
            op = rng.choice(list(calls))
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
                while True:
                    calls[op]()
            except KeyboardInterrupt:
                interrupted += 1
            tally.check(op, lambda: same(calls[op](), alone[op]))  # noqa: B023
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    tally.expect("calls were interrupted", interrupted > 0)
    return tally


# ---- memory that runs out ----


def address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def low_memory() -> Tally:
    """Each op with less and less memory to be had: it raises, or is right, and its inputs stay as they were."""
    tally, raised = Tally("low memory, cpu"), 0
    shape = Shape.parse("T3-B8-C64-R16-HW64x64")  # outputs of 8 MB each: the allocator asks the system for them
    for i, op in enumerate(OPS):
        torch.manual_seed(i)
        inputs = inputs_of(op, shape, CELLS[i], torch.float32)
        options = {**options_of(op, CELLS[i]), "backend": "cpu"}
        kept = {name: x.clone() for name, x in named("", inputs)}
        function = getattr(dla, op)
        alone = outcome(function, inputs, **options)  # also starts the threads, which need memory of their own
        for megabytes in (0, 1, 2, 4, 9, 18, 36, 72):
            limit = address_space() + (megabytes << 20)
            error: Exception | None = None
            found: dict[str, torch.Tensor] = {}
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                found = outcome(function, inputs, **options)
            except (RuntimeError, MemoryError) as why:
                error = why
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            raised += error is not None
            name = f"{op} with {megabytes} MB more"
            tally.check(name, lambda: same(dict(named("", inputs)), kept))  # noqa: B023
            if error is None:
                tally.check(name, lambda: same(found, alone))  # noqa: B023
            tally.check(f"{name}, then with enough", lambda: same(outcome(function, inputs, **options), alone))  # noqa: B023
    tally.expect("memory ran out for most ops", raised >= len(OPS))
    return tally


def in_its_own_process(part: str) -> Tally:
    """A part that may end its process."""
    # Large blocks come from the system and go back to it at once, so that a limit is felt.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "TRITON_INTERPRET": "0",
        "DLA_KERNELS_SIMT": "0",
    }
    command = [sys.executable, "-m", "tests.soak", "--part", part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    tally = Tally(f"{part.replace('_', ' ')}, cpu")
    counts = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
    if counts:
        tally.cases, tally.failures = map(int, counts[0].split())
        print("".join(f"{line}\n" for line in done.stdout.splitlines()[:-1]), end="")
    else:
        tally.cases = tally.failures = 1
        print(f"FAILED {part}: it ended with {done.returncode}\n{done.stderr[-3000:]}")
    return tally


def soak(seed: int, seconds: float, backends: list[Served]) -> list[Tally]:
    rng = random.Random(seed)
    tallies = list(random_cases(rng, backends, 0.8 * seconds))
    for backend in backends:
        tallies.append(threads(backend))
        tallies.append(interrupts(backend, 0.1 * seconds / len(backends)))
    if any(backend.device == "cpu" for backend in backends):
        tallies += [in_its_own_process("forked_workers"), in_its_own_process("low_memory")]
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="about (default 3)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat its cases in their order")
    parser.add_argument(
        "--backends", default="", metavar="A,B", help=f"of {', '.join(BACKENDS)} (default: all real ones)"
    )
    parser.add_argument("--part", choices=("forked_workers", "low_memory"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        tally = {"forked_workers": forked_workers, "low_memory": low_memory}[args.part]()
        print(tally.cases, tally.failures)
        return 0
    asked = args.backends.split(",") if args.backends else [b.name for b in BACKENDS.values() if not b.only_by_name]
    backends = [served for served in COMPILED if served.name in asked]
    if not backends:
        parser.error(f"--backends: none of {', '.join(asked)} is available; see: python -m dla_kernels info")
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"seed {seed}", flush=True)
    tallies = soak(seed, 60 * args.minutes, backends)
    print(table(("what", "cases", "failures"), [(t.what, t.cases, t.failures) for t in tallies]))
    cases, failures = (sum(getattr(t, name) for t in tallies) for name in ("cases", "failures"))
    print(f"{cases} cases, {failures} failures, seed {seed}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
