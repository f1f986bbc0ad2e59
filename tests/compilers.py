"""This module runs tools that compile for minutes, where their record is not of these sources and this compiler.

conftest.py starts the tools first, beside the other tests, and the tests that need them wait last. The fast tier and
the rest compile for one chip, the full run for all.
Several pytest processes (pytest-xdist) may share a run: the first that needs a tool starts it, all wait for its files.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))  # from where the tests import too

import records

LONGEST_SECONDS = 3600
FOLDER = "DLA_KERNELS_BUILDS"  # where the processes of a run find what the tools said


def begin():
    """Make the folder of this run; the process that others are workers of does this."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="dla-builds-")


def end():
    folder = Path(os.environ[FOLDER])
    for pid in folder.glob("*/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


class Build:
    """A build is what a tool of tools/ finds: as recorded, or else as the JSON that it prints, at a low priority."""

    def __init__(self, tool, option, chips, one, *options):
        self.tool, self.every, self.one = tool, tuple(chips), one
        self.folder = Path(os.environ[FOLDER]) / Path(tool.__file__).name
        self.command = ["nice", sys.executable, tool.__file__, "--json", *options]
        if "--folder" in options:
            self.command.append(self.folder / "built")  # the tool empties it first
        self.command.append(option)

    @cached_property
    def record(self):
        return records.read(self.tool.RECORD, self.tool.Resources)

    @cached_property
    def version(self):
        return self.tool.version()

    @cached_property
    def recorded(self):
        """Return whether compiling would say what the record says."""
        return self.record.is_of(self.tool.digest(), self.version)

    def chips(self, tier):
        """Return the chips that the rows are of."""
        return (self.one,) if tier != "full" and not self.recorded else self.every

    def start(self, tier):
        """Start the tool, unless there is nothing to compile or no compiler, or another process has started it."""
        if self.recorded or self.version is None:
            return
        try:
            self.folder.mkdir()
        except FileExistsError:
            return
        script = '"$@" > out 2> err; echo $? > status.part; mv status.part status'
        command = ["sh", "-c", script, "sh", *self.command, *map(str, self.chips(tier))]
        process = subprocess.Popen(command, cwd=self.folder, start_new_session=True)
        (self.folder / "pid").write_text(str(process.pid))

    def rows(self, tier):
        if self.recorded:
            return self.record.rows
        if self.version is None:
            pytest.skip("the record is of other sources, and there is no compiler here")
        self.start(tier)
        status, deadline = self.folder / "status", time.monotonic() + LONGEST_SECONDS
        while not status.exists():
            assert time.monotonic() < deadline, f"{self.command}: no end after {LONGEST_SECONDS} s"
            time.sleep(0.1)
        assert status.read_text() == "0\n", (self.folder / "err").read_text()[-8000:]
        return [self.tool.Resources(*row) for row in json.loads((self.folder / "out").read_text())]

    def check_record(self, tier):
        """Check that the record is of these sources. One of others costs a full run its time, as that compiles for
        every chip: this is told, no more. But where there is no compiler nothing is known of these sources, and only
        the fast tier lets that pass."""
        if self.record.digest != self.tool.digest():
            stale = f"the record is of other sources; run: python tools/{self.folder.name} --write"
            (pytest.skip if self.version is not None or tier == "fast" else pytest.fail)(stale)
