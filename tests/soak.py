"""This run does to the ops what users do to them, for minutes: `make soak`, or `python -m tests.soak --minutes 1`.

It compares random shapes, layouts, dtypes, cells and backends with the reference; it calls from threads at once and in
DataLoader workers; it interrupts calls, and lets memory run out. It prints how many cases failed, and for each the
command that repeats it: a random case or one of low memory alone, otherwise the part, since no one can repeat what
threads and signals did.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable

import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS
from dla_kernels.terminal import table

from .calls import check_parity, cotangents_for, outcome
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
from .memory import MALLOC, Outcome, low_memory
from .tally import Tally, command
from .tolerances import assert_same_bits

SOME = Shape.parse("T4-B6-C33-R8-HW14x14")
THREADS = 4


# ---- random cases ----


def drawn(rng: random.Random) -> tuple[Shape, dict]:
    """Draw a shape and how its maps lie in memory; widths beside those of vectors come often."""
    sides = lambda: rng.choice((rng.randint(1, 9), rng.choice((16, 31, 65))))  # noqa: E731
    T = rng.randint(1, 6)
    sizes = tuple((sides(), sides()) for _ in range(rng.randint(1, T)))
    C = rng.choice((rng.randint(1, 20), rng.choice((31, 32, 33, 47, 64, 65, 129))))
    dtype = rng.choice(DTYPES)
    weights = rng.choice([dtype] if dtype == torch.float64 else [dtype, torch.float32])
    how = {"dtype": dtype, "layout": rng.choice(LAYOUT_NAMES), "weight_dtype": weights}
    return Shape(T, rng.randint(1, 10), C, rng.randint(1, 40), sizes), how


def parity(rng: random.Random, backend: Served) -> tuple[str, Callable[[], None]]:
    """Return the name of a random case, and the case."""
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


def drawn_case(seed: int, number: int, backend: Served) -> tuple[str, Callable[[], None]]:
    """Return a case with random numbers of its own: it is the same whatever cases came before it, on any backends."""
    return parity(random.Random(f"{seed} {backend.name} {number}"), backend)


def random_cases(tally: Tally, backend: Served, seed: int, numbers: Iterable[int], seconds: float) -> None:
    until = time.monotonic() + seconds
    for number in numbers:
        if time.monotonic() > until:
            break
        again = command("--backends", backend.name, "--seed", seed, "--case", number)
        tally.check(*drawn_case(seed, number, backend), again=again)
        if sys.stderr.isatty():
            print(f"\r{tally.what}: {tally.cases} cases", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)


# ---- the same call from many places ----


def calls_for(backend: Served, seed: int = 0) -> dict[str, Callable[[], Outcome]]:
    """Return each op, forward and backward, as a call whose outcome is always the same."""
    calls = {}
    for i, op in enumerate(OPS):
        torch.manual_seed(100 * seed + i)
        cell = CELLS[i % len(CELLS)]
        inputs = inputs_of(op, SOME, cell, torch.float32, device=backend.device)
        cotangents = cotangents_for(op, inputs, **options_of(op, cell))
        options = {**options_of(op, cell), "backend": backend.name}
        calls[op] = lambda op=op, i=inputs, c=cotangents, o=options: outcome(getattr(dla, op), i, c, **o)
    return calls


def same(ours: Outcome, theirs: Outcome) -> None:
    assert ours.keys() == theirs.keys()
    assert theirs, "there is nothing to compare"
    for name in theirs:
        assert_same_bits(ours[name], theirs[name], name)


def threads(tally: Tally, backend: Served, rounds: int = 25) -> None:
    """Call from four threads, each with inputs of its own: all in one op at once, and then each in any op."""
    calls = [calls_for(backend, seed) for seed in range(THREADS)]
    alone = [{op: call() for op, call in own.items()} for own in calls]
    together = threading.Barrier(THREADS, timeout=60)
    before = tally.cases

    def check(i: int, op: str) -> None:
        tally.check(f"{op} in thread {i}", lambda: same(calls[i][op](), alone[i][op]))

    def work(i: int) -> None:
        rng = random.Random(i)
        for r in range(rounds):
            together.wait()
            check(i, OPS[r % len(OPS)])
        for _ in range(rounds):
            check(i, rng.choice(OPS))

    workers = [threading.Thread(target=work, args=(i,), name=f"soak {i}") for i in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    tally.expect("every call of every thread came back", tally.cases - before == 2 * rounds * THREADS)


class Updated(torch.utils.data.Dataset):
    """A forked worker refreshes the samples of this data set itself."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        R, C = SOME.R, SOME.C
        self.weights = dla.Joint(torch.randn(R, 2 * C), torch.randn(3 * C, R), torch.zeros(3 * C))
        self.xs = torch.randn(32, SOME.T, 1, C, 14, 14)

    def __len__(self) -> int:
        return len(self.xs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Return the sample, and the process that made it."""
        out, _ = dla.layer_update(list(self.xs[i]), self.weights, backend="cpu")
        return torch.stack(out), os.getpid()


def forked_workers(tally: Tally) -> None:
    """Load samples in DataLoader workers forked from a process that has used all its threads."""
    samples, came = Updated(), 0
    alone = [samples[i][0] for i in range(len(samples))]
    loader = torch.utils.data.DataLoader(samples, num_workers=2, multiprocessing_context="fork", timeout=60)
    for i, ((found,), (pid,)) in enumerate(loader):
        tally.check(f"sample {i}", lambda: assert_same_bits(found, alone[i]))  # noqa: B023
        tally.expect(f"sample {i} is of another process", pid != os.getpid())
        came += 1
    tally.expect("every sample came", came == len(samples))


class Alarm(KeyboardInterrupt):
    """This interrupt is of our own making: the user's Ctrl-C still ends the run."""


def ring(*_: object) -> None:
    raise Alarm


def is_interrupted(call: Callable[[], object], after: float) -> bool:
    """Return whether an alarm ended the call, repeated until it rings. One in a finalizer is lost: hence a limit."""
    until = time.monotonic() + after + 1
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        try:
            while time.monotonic() < until:
                call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        return True
    return False


def interrupts(tally: Tally, backend: Served, seconds: float) -> None:
    """Interrupt calls at any moment, as Ctrl-C does: the next are right, in this thread and for the same tensors."""
    calls = calls_for(backend)
    alone = {op: call() for op, call in calls.items()}
    rng, until, interrupted = random.Random(0), time.monotonic() + seconds, 0
    before = signal.signal(signal.SIGALRM, ring)

    def case(op: str) -> None:
        nonlocal interrupted
        interrupted += is_interrupted(calls[op], rng.uniform(1e-5, 2e-3))
        same(calls[op](), alone[op])

    try:
        while time.monotonic() < until:
            op = rng.choice(OPS)
            tally.check(op, lambda: case(op))  # noqa: B023
    finally:
        signal.signal(signal.SIGALRM, before)
    tally.expect("calls were interrupted", interrupted > 0)


# ---- all of it ----


def in_its_own_process(tally: Tally, part: str, case: str | None = None) -> None:
    """Run a part that may end its process in one of its own."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "DLA_KERNELS_SIMT": "0"}
    if part == "low_memory":
        environment |= MALLOC
    line = [sys.executable, "-m", "tests.soak", "--part", part, "--here", *(["--case", case] if case else [])]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    counts = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
    if counts:
        cases, failures = map(int, counts[0].split())
        tally.cases += cases
        tally.failures += failures
        print("".join(f"{line}\n" for line in done.stdout.splitlines()[:-1]), end="")
    else:
        tally.expect(f"it ended with {done.returncode}\n{done.stdout}{done.stderr[-3000:]}", False)


def part_here(part: str, case: str | None) -> None:
    """Run one of the parts that have a process of their own, and print its counts last."""
    tally = Tally(f"{part.replace('_', ' ')}, cpu", command("--part", part))
    if part == "forked_workers":
        forked_workers(tally)
    elif case is None:
        low_memory(tally)
    else:
        *way, how, room = case.split()
        low_memory(tally, [" ".join(way)], [(how == "warm", int(room))])
    print(tally.cases, tally.failures)


OWN_PROCESS = ("forked_workers", "low_memory")
PARTS = ("parity", "threads", "interrupts", *OWN_PROCESS)


def soak(
    tallies: list[Tally],
    seed: int,
    seconds: float,
    backends: list[Served],
    parts: Iterable[str] = PARTS,
    case: str | None = None,
) -> None:
    """Run the parts, and add to ``tallies`` on the way, so that they hold what was done if it is interrupted."""

    def begun(what: str, part: str, *options: str) -> Tally:
        tallies.append(Tally(what, command("--part", part, *options)))
        return tallies[-1]

    if "parity" in parts:
        for backend in backends:
            tally = begun(f"parity, {backend.name}", "parity")
            numbers = itertools.count() if case is None else [int(case)]
            random_cases(tally, backend, seed, numbers, 0.8 * seconds / len(backends))
    for backend in backends:
        named = ("--backends", backend.name)
        if "threads" in parts:
            threads(begun(f"threads at once, {backend.name}", "threads", *named), backend)
        if "interrupts" in parts:
            tally = begun(f"interrupted calls, {backend.name}", "interrupts", *named)
            interrupts(tally, backend, 0.1 * seconds / len(backends))
    if any(backend.device == "cpu" for backend in backends):
        for part in OWN_PROCESS:
            if part in parts:
                in_its_own_process(begun(f"{part.replace('_', ' ')}, cpu", part), part, case)


def served(asked: str) -> list[Served]:
    """Return the backends of these names; without names, all real ones."""
    names = asked.split(",") if asked else [b.name for b in BACKENDS.values() if not b.only_by_name]
    if unknown := [name for name in names if name not in BACKENDS]:
        raise ValueError(f"no {', '.join(unknown)}; there are {', '.join(BACKENDS)}")
    found = [served for served in COMPILED if served.name in names]
    missing = set(names) - {served.name for served in found} if asked or not found else ()
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} is not available here; see: python -m dla_kernels info")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of random cases and interrupts, about (default 3)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat its cases in their order")
    parser.add_argument(
        "--backends", default="", metavar="A,B", help=f"of {', '.join(BACKENDS)} (default: all real ones)"
    )
    parser.add_argument("--part", choices=PARTS, help="this alone")
    parser.add_argument("--case", help="this case alone, as a failure tells it")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        part_here(args.part, args.case)
        return 0
    try:
        backends = served(args.backends)
    except ValueError as error:
        parser.error(f"--backends: {error}")
    part = args.part or (args.case and "parity")
    if args.case and part == "parity" and (len(backends) > 1 or args.seed is None):
        parser.error("--case: name its --seed and its one backend too")
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"seed {seed}", flush=True)
    tallies: list[Tally] = []
    stopped = False
    try:
        soak(tallies, seed, 60 * args.minutes, backends, [part] if part else PARTS, args.case)
    except KeyboardInterrupt:
        stopped = True
    print(table(("what", "cases", "failures"), [(t.what, t.cases, t.failures) for t in tallies]))
    cases, failures = (sum(getattr(t, name) for t in tallies) for name in ("cases", "failures"))
    print(f"{cases} cases, {failures} failures, seed {seed}{', interrupted' if stopped else ''}")
    return 130 if stopped else int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
