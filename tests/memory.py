"""This part of tests/soak.py lets memory run out: it calls every op with more and less to be had."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import resource
import threading
import traceback
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import torch

import dla_kernels as dla

from .calls import cotangents_for, named, outcome
from .cases import CELLS, OPS, Shape, inputs_of, maps, options_of
from .tally import Tally, command

Outcome = dict[str, torch.Tensor]

# Every block of 32 KB or more comes from the system and goes back to it at once, there is one heap for all threads,
# and it keeps no reserve: a limit is then felt.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 15),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_TRIM_THRESHOLD_": "0",
}
TIGHT = Shape.parse("T2-B32-C128-R32-HW8x8")  # maps of 1 MB; gates of a layer, in scratch memory, of 48 KB
TINY = Shape.parse("T2-B2-C3-R2-HW2x2")
PLENTY = 16 << 10  # KB
WARM = (0, 2 << 10)  # KB
FORK = multiprocessing.get_context("fork")


class Call(NamedTuple):
    """A call that runs out of memory has what it is given, and what of that it may write."""

    run: Callable[[], Outcome]
    given: Outcome
    moved: tuple[str, ...] = ()  # by a call that succeeds
    written: tuple[str, ...] = ()  # perhaps by one that fails too: the version counters then tell autograd


def forward(op: str, shape: Shape) -> Call:
    cell = CELLS[OPS.index(op)]
    inputs = inputs_of(op, shape, cell, torch.float32)
    options = {**options_of(op, cell), "backend": "cpu"}
    return Call(lambda: outcome(getattr(dla, op), inputs, **options), dict(named("", inputs)))


def backward(op: str, shape: Shape) -> Call:
    cell = CELLS[OPS.index(op)]
    inputs = inputs_of(op, shape, cell, torch.float32)
    cotangents = cotangents_for(op, inputs, **options_of(op, cell))
    options = {**options_of(op, cell), "backend": "cpu"}
    return Call(lambda: outcome(getattr(dla, op), inputs, cotangents, **options), dict(named("", inputs)))


def inplace(op: str, shape: Shape) -> Call:
    cell = CELLS[OPS.index(op)]
    inputs = inputs_of(op, shape, cell, torch.float32)
    options = {**options_of(op, cell), "backend": "cpu", "inplace": True}
    return Call(
        lambda: outcome(getattr(dla, op), inputs, **options),
        dict(named("", inputs)),
        written=tuple(dict(named("", {"xs": inputs["xs"]}))),
    )


def norm_inputs(shape: Shape) -> tuple[Outcome, dict[str, torch.Tensor]]:
    """Return what is differentiated of ``norm_add`` in training, and the rest of its inputs."""
    x, o = maps(shape, torch.float32)
    inputs = {"x": x, "o": o, "gamma": torch.randn(shape.C), "beta": torch.randn(shape.C)}
    return inputs, {"moments": dla.reference.heads.moments_of(o)}


def norm_forward(op: str, shape: Shape) -> Call:
    inputs, options = norm_inputs(shape)
    running = {"mean": torch.randn(shape.C), "var": torch.rand(shape.C)}

    def run() -> Outcome:
        out = outcome(getattr(dla, op), inputs, running=tuple(running.values()), **options, backend="cpu")
        return out | {name: x.clone() for name, x in running.items()}

    return Call(run, inputs | options | running, moved=tuple(running))


def norm_backward(op: str, shape: Shape) -> Call:
    inputs, options = norm_inputs(shape)
    cotangents = {"out": torch.randn_like(inputs["x"])}
    run = lambda: outcome(getattr(dla, op), inputs, cotangents, running=None, **options, backend="cpu")  # noqa: E731
    return Call(run, inputs | options)


WAYS = {
    **{f"{op} {make.__name__}": (make, op) for op in OPS for make in (forward, backward)},
    **{f"{op} inplace": (inplace, op) for op in ("rescale", "layer_update")},
    "norm_add forward": (norm_forward, "norm_add"),
    "norm_add backward": (norm_backward, "norm_add"),
}


def digests(tensors: Outcome) -> dict[str, str]:
    return {name: hashlib.sha256(x.detach().contiguous().numpy()).hexdigest() for name, x in tensors.items()}


def address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def leave_holes() -> None:
    """Leave free blocks too small for scratch memory: torch, as it words an error, does not check what it gets."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(28 << 10) for _ in range(100)]
    for block in blocks[::2]:
        libc.free(block)


class Squeezed(NamedTuple):
    error: str  # what the call raised, or empty
    wrong: list[str]


def made(way: str, shape: Shape) -> Call:
    torch.manual_seed(list(WAYS).index(way))
    make, op = WAYS[way]
    return make(op, shape)


def ready(way: str) -> Call:
    """Return the call, in a process that has all it needs but memory: threads, and what is made at first use."""
    call = made(way, TIGHT)
    sum(x.exp().sum() for x in call.given.values())  # torch starts its threads
    made(way, TINY).run()
    return call


def alone(way: str) -> dict[str, str]:
    return digests(ready(way).run())


def squeezed(way: str, warm: bool, room: int, right: dict[str, str]) -> Squeezed:
    """Try a call that may have ``room`` KB more than the process has; if warm, after one that keeps scratch memory."""
    call, error, found, wrong = ready(way), "", None, []
    kept = {name: x.clone() for name, x in call.given.items()}

    def restore() -> None:
        with torch.no_grad():
            for name in (*call.moved, *call.written):
                call.given[name].copy_(kept[name])

    if warm:
        call.run()
        restore()
    versions = {name: x._version for name, x in call.given.items()}
    leave_holes()
    limit = address_space() + (room << 10)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        found = call.run()
    except (RuntimeError, MemoryError) as why:
        error = f"{type(why).__name__}: {why}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if found is not None and digests(found) != right:
        wrong.append("the outcome is wrong, and nothing was raised")
    now, before = digests(call.given), digests(kept)
    for name in call.given:
        if now[name] == before[name] or (found is not None and name in call.moved):
            continue
        if name not in call.written:
            wrong.append(f"{name} was changed")
        elif call.given[name]._version == versions[name]:
            wrong.append(f"{name} was written, and autograd not told")
    restore()
    if digests(call.run()) != right:
        wrong.append("then, with enough memory, the outcome is wrong")
    return Squeezed(error, wrong)


def in_a_fork(work: Callable[[], object]) -> object:
    """Return what ``work`` returns, from a child that may die of it.

    There it runs in a thread, whose stack is there from the beginning: the main thread's grows, and the system ends a
    process that has no memory for that.
    """
    ours, theirs = FORK.Pipe(duplex=False)

    def tell() -> None:
        try:
            theirs.send((work(), None))
        except Exception:
            theirs.send((None, traceback.format_exc()))

    def with_a_stack() -> None:
        worker = threading.Thread(target=tell)
        worker.start()
        worker.join()

    child = FORK.Process(target=with_a_stack)
    child.start()
    theirs.close()
    try:
        found, error = ours.recv() if ours.poll(60) else (None, "it hangs")
    except EOFError:
        child.join()
        found, error = None, f"it ended with {child.exitcode}"
    child.kill()
    child.join()
    assert error is None, error
    return found


def low_memory(
    tally: Tally, ways: Collection[str] = tuple(WAYS), cases: Iterable[tuple[bool, int]] | None = None
) -> None:
    """Call each op with more and less memory to be had: it raises, or is right, and its inputs stay as they were.

    Each case has a process of its own, so that one finds no scratch memory that another has left; this process calls
    no op, so that it has no threads that a fork would lose. Where a cold call just fails is found by bisection: there
    it has its outputs, and what it lacks is scratch memory.
    """
    scratch = tight = 0

    def case(way: str, warm: bool, room: int, right: dict[str, str]) -> bool:
        """Return whether the case raised."""
        nonlocal scratch
        error = ""

        def run() -> None:
            nonlocal error
            error, wrong = in_a_fork(lambda: squeezed(way, warm, room, right))
            assert not wrong, "; ".join(wrong)

        name = f"{way} {'warm' if warm else 'cold'} {room}"
        tally.check(f"{name} KB", run, command("--part", "low_memory", "--case", name))
        scratch += "bad_alloc" in error or "torch_parallel_for" in error  # in this thread, in another
        return bool(error)

    for way in ways:
        right: dict[str, str] = {}
        tally.check(f"{way} alone", lambda: right.update(in_a_fork(lambda: alone(way))))  # noqa: B023
        if cases is not None:
            for warm, room in cases:
                case(way, warm, room, right)
            continue
        low, high = 0, PLENTY
        while high - low > 64:
            room = (low + high) // 2
            low, high = (room, high) if case(way, False, room, right) else (low, room)
        tally.expect(f"{way}: memory was enough in the end", high < PLENTY)
        tight += low > 0
        for room in WARM:
            case(way, True, room, right)
    if cases is None:
        tally.expect("memory ran out in most ways", tight > len(ways) / 2)  # some need next to none
        tally.expect("scratch memory ran out", scratch > 0)
