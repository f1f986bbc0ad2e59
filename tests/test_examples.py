"""The examples run as their docstrings say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def run(name, *options):
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", f"examples.{name}", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout


def test_swap_cell_trains_with_each_cell_asked_for(tmp_path):
    said = run("swap_cell", "--epochs", 1, "--cells", "lstm", "rnn", "--plot", tmp_path / "cells.png")
    assert [line.split()[0] for line in said.splitlines()[4:6]] == ["lstm", "rnn"]
    assert (tmp_path / "cells.png").exists()


@pytest.mark.parametrize("name", ["swap_cell"])
def test_examples_have_help(name):
    assert "usage:" in run(name, "--help")
