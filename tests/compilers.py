"""Tools that compile for minutes: conftest.py starts them first, beside the other tests, and theirs wait last.

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
from pathlib import Path

TOOLS = Path(__file__).parent.parent / "tools"
LONGEST_SECONDS = 3600
FOLDER = "DLA_KERNELS_BUILDS"  # where the processes of a run find what the tools said


def begin():
    """By the process that others are workers of."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="dla-builds-")


def end():
    folder = Path(os.environ[FOLDER])
    for pid in folder.glob("*/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


class Build:
    """A tool of tools/ that prints JSON; it gives way to the tests."""

    def __init__(self, tool, *options):
        self.folder = Path(os.environ[FOLDER]) / tool
        self.command = ["nice", sys.executable, TOOLS / tool, "--json", *options]
        if "--folder" in options:
            self.command.append(self.folder / "built")  # tools begin with an empty one

    def start(self):
        """Unless another process has."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            return
        script = '"$@" > out 2> err; echo $? > status.part; mv status.part status'
        process = subprocess.Popen(["sh", "-c", script, "sh", *self.command], cwd=self.folder, start_new_session=True)
        (self.folder / "pid").write_text(str(process.pid))

    def result(self):
        self.start()
        status, deadline = self.folder / "status", time.monotonic() + LONGEST_SECONDS
        while not status.exists():
            assert time.monotonic() < deadline, f"{self.command}: no end after {LONGEST_SECONDS} s"
            time.sleep(0.1)
        assert status.read_text() == "0\n", (self.folder / "err").read_text()[-8000:]
        return json.loads((self.folder / "out").read_text())
