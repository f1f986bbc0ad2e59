"""The robustness run finds nothing in a few seconds, and finds what is wrong."""

import random
import re
import subprocess
import sys

import pytest

import dla_kernels as dla

from . import soak
from .conftest import COMPILED

CPU = next(served for served in COMPILED if served.name == "cpu")


@pytest.mark.slow
def test_a_short_run_passes_and_says_its_seed():
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.1", "--seed", "7", "--backends", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 7\n")
    assert re.search(r"^\d+ cases, 0 failures, seed 7$", done.stdout, re.M)
    for what in ("parity, cpu", "threads at once", "forked workers", "interrupted calls", "low memory"):
        assert re.search(rf"^{what}.* [1-9]\d* +0$", done.stdout, re.M), what


def test_a_seed_repeats_its_cases():
    names = [[soak.parity(rng, CPU)[0] for _ in range(20)] for rng in (random.Random(3), random.Random(3))]
    assert names[0] == names[1]
    assert len(set(names[0])) == 20


def test_a_wrong_op_is_found(monkeypatch, capsys):
    right = dla.rescale

    def wrong(xs, d, **options):
        return [1.001 * x if x.shape[-1] > 8 else x for x in right(xs, d, **options)]

    monkeypatch.setattr(dla, "rescale", wrong)
    monkeypatch.setattr(soak, "OPS", ("rescale",))
    (tally,) = soak.random_cases(random.Random(0), [CPU], 2)
    assert 0 < tally.failures < tally.cases
    assert re.search(r"FAILED parity, cpu: rescale cpu T\d+-B\d+.* seed \d+\n", capsys.readouterr().out)
