"""The robustness run finds nothing in a few seconds, and finds what is wrong: each part has failures planted."""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import dla_kernels as dla

from . import soak
from .conftest import COMPILED, Served
from .memory import MALLOC
from .tally import Tally

CPU = next(served for served in COMPILED if served.name == "cpu")
RIGHT = dla.rescale


def run(*options, **how):
    command = [sys.executable, "-m", "tests.soak", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)


@pytest.fixture
def plant(monkeypatch):
    """Return a function that puts an op in the place of rescale, then the only op."""

    def planted(op):
        monkeypatch.setattr(dla, "rescale", op)
        monkeypatch.setattr(soak, "OPS", ("rescale",))

    return planted


@pytest.fixture
def tally():
    return Tally("planted")


@pytest.mark.slow
def test_a_short_run_passes_and_says_its_seed():
    done = run("--minutes", "0.1", "--seed", "7", "--backends", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 7\n")
    assert re.search(r"^\d+ cases, 0 failures, seed 7$", done.stdout, re.M)
    for what in ("parity, cpu", "threads at once", "forked workers", "interrupted calls", "low memory"):
        assert re.search(rf"^{what}.* [1-9]\d* +0$", done.stdout, re.M), what


# ---- random cases ----


def test_a_seed_repeats_its_cases_whatever_came_before():
    names = [[soak.drawn_case(3, number, CPU)[0] for number in order] for order in (range(20), range(19, -1, -1))]
    assert names[0] == names[1][::-1]
    assert len(set(names[0])) == 20
    other = Served("another", CPU.device)
    assert soak.drawn_case(3, 0, other)[0].replace("another", "cpu") != names[0][0]


def test_a_wrong_op_is_found_and_the_case_repeated(plant, tally, capsys, monkeypatch):
    plant(lambda xs, d, **options: [1.001 * x if x.shape[-1] > 8 else x for x in RIGHT(xs, d, **options)])
    soak.random_cases(tally, CPU, 0, itertools.count(), 2)
    assert 0 < tally.failures < tally.cases
    printed = capsys.readouterr().out
    name, again = re.search(r"FAILED planted: (rescale cpu T\d+-B\d+.* seed \d+)\nagain: (.*)\n", printed).groups()
    options = shlex.split(again)
    options = options[options.index("tests.soak") + 1 :]
    monkeypatch.setattr(sys, "argv", ["soak", *options])
    assert soak.main() == 1
    printed = capsys.readouterr().out
    assert printed.count(name) == 1
    assert "\n1 cases, 1 failures, seed 0\n" in printed


# ---- the same call from many places ----


def test_comparing_nothing_or_different_results_fails():
    one, other = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    soak.same(one, one)
    for ours, theirs in (({}, {}), (one, other), (one, {}), ({}, one)):
        with pytest.raises(AssertionError):
            soak.same(ours, theirs)


def test_threads_that_are_right_pass(plant, tally):
    plant(RIGHT)
    soak.threads(tally, CPU, rounds=4)
    assert (tally.cases, tally.failures) == (2 * 4 * soak.THREADS + 1, 0)


def in_thread_two():
    return threading.current_thread().name == "soak 2"


def wrong_in_a_thread(xs, d, **options):
    return [x + 1 if in_thread_two() else x for x in RIGHT(xs, d, **options)]


def raises_in_a_thread(xs, d, **options):
    if in_thread_two():
        raise RuntimeError("planted")
    return RIGHT(xs, d, **options)


@pytest.mark.parametrize("op", [wrong_in_a_thread, raises_in_a_thread])
def test_an_op_that_fails_in_one_thread_is_found(plant, tally, capsys, op):
    plant(op)
    soak.threads(tally, CPU, rounds=4)
    assert (tally.cases, tally.failures) == (2 * 4 * soak.THREADS + 1, 2 * 4)
    assert "FAILED planted: rescale in thread 2\n" in capsys.readouterr().out


def test_a_race_between_calls_of_one_op_is_found(plant, tally):
    shared = []

    def racing(xs, d, **options):
        shared[:] = RIGHT(xs, d, **options)
        time.sleep(0.002)
        return list(shared)

    plant(racing)
    soak.threads(tally, CPU, rounds=4)
    assert tally.failures > 0


def test_a_worker_that_is_not_a_fork_is_found(tally, monkeypatch):
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(torch.utils.data, "DataLoader", lambda samples, **how: loader(samples, num_workers=0))
    soak.forked_workers(tally)
    assert tally.failures == len(soak.Updated())


def test_an_op_that_is_wrong_after_an_interrupt_is_found(plant, tally):
    broken = []

    def breaks(xs, d, **options):
        try:
            time.sleep(0.001)
        except KeyboardInterrupt:
            broken.append(True)
            raise
        return [x + len(broken) for x in RIGHT(xs, d, **options)]

    plant(breaks)
    soak.interrupts(tally, CPU, 0.5)
    assert 0 < tally.failures < tally.cases


def test_another_exception_in_an_interrupted_call_fails_its_case_only(plant, tally, capsys):
    calls = itertools.count()

    def raises_at_times(xs, d, **options):
        if next(calls) % 7 == 6:
            raise RuntimeError("planted")
        return RIGHT(xs, d, **options)

    plant(raises_at_times)
    soak.interrupts(tally, CPU, 0.5)
    assert 0 < tally.failures < tally.cases
    assert "RuntimeError: planted" in capsys.readouterr().out


# ---- memory that runs out ----

PLANTED = """
import os
import sys
import dla_kernels as dla
from dla_kernels.ops import inplace
from tests.memory import PLENTY, low_memory
from tests.tally import Tally

def spoils(xs, d, right=dla.rescale, **options):
    try:
        return right(xs, d, **options)
    except (RuntimeError, MemoryError):
        xs[0].zero_()
        raise

def moves(x, o, gamma, beta, running, right=dla.norm_add, **options):
    if running is not None:
        running[0].add_(1)
    return right(x, o, gamma, beta, running, **options)

def tells_late(xs, weights, right=dla.layer_update, mark=inplace.mark_written, **options):
    try:
        result = right(xs, weights, **options)
    except (RuntimeError, MemoryError):
        xs[0].data.zero_()
        raise
    mark(xs)
    return result

def dies(x, v, right=dla.depthwise, **options):
    try:
        return right(x, v, **options)
    except (RuntimeError, MemoryError):
        os._exit(3)

if sys.argv[1] == "planted":
    dla.rescale, dla.norm_add, dla.layer_update, dla.depthwise = spoils, moves, tells_late, dies
    sys.modules["dla_kernels.ops.layer_update"].mark_written = lambda xs: None
for way in ("rescale forward", "norm_add forward", "layer_update inplace", "depthwise forward"):
    tally = Tally(way)
    low_memory(tally, [way], [(False, 100), (False, PLENTY)])
    print(way, tally.cases, tally.failures)
"""


def low_memory(what):
    return subprocess.run(
        [sys.executable, "-c", PLANTED, what],
        env=os.environ | MALLOC | {"DLA_KERNELS_SIMT": "0", "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_ops_that_go_wrong_as_memory_runs_out_are_found():
    printed = low_memory("planted")
    assert "xs[0] was changed" in printed
    assert "mean was changed" in printed
    assert "xs[0] was written, and autograd not told" in printed
    assert "it ended with 3" in printed
    failures = dict(re.findall(r"^(\w+ \w+) 3 (\d)$", printed, re.M))
    assert failures.pop("norm_add forward") in "12"  # it has moved twice if it succeeds: that is wrong as well
    assert failures == dict.fromkeys(("rescale forward", "layer_update inplace", "depthwise forward"), "1"), printed


def test_right_ops_pass_as_memory_runs_out():
    printed = low_memory("nothing")
    assert len(re.findall(r"^\w+ \w+ 3 0$", printed, re.M)) == 4, printed


# ---- the command ----


def test_backends_that_are_not_there_are_refused():
    done = run("--backends", "cpu,nonsense")
    assert done.returncode == 2
    assert "no nonsense; there are cpu, cuda, triton" in done.stderr


def test_ctrl_c_prints_what_was_done():
    command = [sys.executable, "-m", "tests.soak", "--minutes", "5", "--seed", "1", "--backends", "cpu"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731, what a shell runs with & ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stdout.readline() == "seed 1\n"
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        printed = process.stdout.read()
    assert process.returncode == 130
    assert re.search(r"^parity, cpu +\d+ +0$", printed, re.M)
    assert re.search(r"^\d+ cases, 0 failures, seed 1, interrupted$", printed, re.M)
