"""The fast tier has every pair of values, by a seed that repeats a run and walks on with the commits."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import combinations, product

import pytest

from . import tiers

ROOT = tiers.ROOT


def grid(**values):
    return [dict(zip(values, case)) for case in product(*values.values())]


def combos(cases, strength):
    return {pair for case in cases for pair in combinations(sorted(case.items()), strength)}


def covered_by(cases, strength, seed=0):
    return [cases[i] for i in tiers.covering(cases, strength, random.Random(seed))]


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_a_covering_array_has_every_combination_of_values(strength):
    cases = grid(cell="abcdefg", dtype="hl", layout=range(5), backend="cg")
    chosen = covered_by(cases, strength)
    assert combos(chosen, strength) == combos(cases, strength)
    assert len(chosen) <= {1: 7, 2: 40, 3: 110}[strength] < len(cases)


def test_a_covering_array_keeps_to_the_cases_there_are():
    """Where a value excludes another, no pair of the two is asked for."""
    cases = [case for case in grid(op="gs", cell="abc") if case["op"] == "s" or case["cell"] == "a"]
    assert combos(covered_by(cases, 2), 2) == combos(cases, 2)


def test_a_test_without_parameters_is_never_left_out():
    assert tiers.covering([{}], 2, random.Random(0)) == [0]


def test_the_seed_decides_the_cases_and_seeds_together_reach_all():
    cases = grid(a=range(6), b=range(5), c=range(4))
    assert covered_by(cases, 2, seed=1) == covered_by(cases, 2, seed=1)
    reached = {tuple(case.values()) for seed in range(60) for case in covered_by(cases, 2, seed)}
    assert len(reached) == len(cases)  # successive commits walk through the whole product


# ---- a run ----

COLLECT = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider"]


def collected(*options):
    done = subprocess.run([*COLLECT, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^tests/.*::.*$", done.stdout, re.MULTILINE)), done.stdout


def test_fast_and_rest_are_the_full_run_and_share_nothing():
    """They run by one seed, as in CI."""
    files = [f"tests/test_{name}.py" for name in ("scan", "gradcheck", "integration", "cuda_mutations")]
    parts = {tier: collected(f"--tier={tier}", "--tier-seed=7", *files)[0] for tier in tiers.TIERS}
    assert parts["fast"] | parts["rest"] == parts["full"]
    assert not parts["fast"] & parts["rest"]
    assert 10 < len(parts["fast"]) < len(parts["full"])


def test_a_run_says_its_seed_and_what_it_left_out():
    cases, said = collected("--tier=fast", "--tier-seed=7", "tests/test_scan.py")
    number, left = re.search(r"tier fast, seed 7: (\d+) cases\. Left out: (.*)\.", said).groups()
    assert int(number) == len(cases)
    assert re.search(r"\d+ cases whose pairs of values others have", left)


def test_workers_choose_by_the_seed_of_their_run():
    """Each chooses for itself, and they must agree: otherwise pytest-xdist stops."""
    pytest.importorskip("xdist")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n2", "--tier=fast", "tests/test_tiers.py"]
    done = subprocess.run([*command, "-k", "covering"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tier fast, seed {tiers.seed_of_the_commit()}: " in done.stdout


def test_a_choice_by_name_does_not_change_the_tier():
    every, _ = collected("--tier=fast", "--tier-seed=7", "tests/test_scan.py")
    some, _ = collected("--tier=fast", "--tier-seed=7", "tests/test_scan.py", "-k", "saturated")
    assert some == {case for case in every if "saturated" in case}


def test_names_in_the_rule_are_tests():
    for name in (*tiers.LEFT, *tiers.ONCE):
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / f"tests/{file}.py").read_text(), name


CRASHES = """
import os
def test_before(): pass
def test_that_crashes(): os.abort()
def test_after(): pass
"""


def test_a_crash_costs_one_case_and_is_named(tmp_path):
    """The worker that it ends has told nothing of its tier; another goes on in its place."""
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(CRASHES)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest", "-n1", tmp_path]
    run = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([*command, f"--rootdir={tmp_path}"], check=False, **run)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "test_that_crashes" in done.stdout


# ---- an interrupted run ----

# A test that starts a compiler which would go on for minutes, as tests/compilers.py does.
STARTS_A_COMPILER = """
import pathlib, subprocess, time
def test_it(tmp_path):
    compiler = subprocess.Popen(["sleep", "300"], start_new_session=True)
    pathlib.Path({pid!r}).write_text(str(compiler.pid))
    time.sleep(300)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_run_leaves_nothing_running(tmp_path, how):
    (tmp_path / "test_slow.py").write_text(STARTS_A_COMPILER.format(pid=str(tmp_path / "pid")))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.guardian", tmp_path]
    run = subprocess.Popen(
        [*command, f"--rootdir={tmp_path}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell that starts this in the background has Ctrl-C ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    compiler = int((tmp_path / "pid").read_text())
    assert is_running(compiler)
    run.send_signal(how)
    run.wait(120)
    while is_running(compiler):
        assert time.monotonic() < deadline, "the compiler goes on"
        time.sleep(0.05)


def is_running(pid):
    """Return whether a process is running; a zombie is not."""
    try:
        stat = (tiers.Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
