"""Tools that compile for minutes: conftest.py starts them first, beside the other tests, and theirs wait last."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BUILDS = pytest.StashKey()  # under way: module name -> Build
TOOLS = Path(__file__).parent.parent / "tools"


class Build:
    """A tool of tools/ that prints JSON; it gives way to the tests."""

    def __init__(self, tool, *options):
        self.folder = tempfile.TemporaryDirectory()
        command = ["nice", sys.executable, TOOLS / tool, "--json", *options]
        if "--folder" in options:
            command.append(self.folder.name)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(word) for word in command], start_new_session=True, **pipes)

    def result(self):
        out, err = self.process.communicate()
        self.stop()
        assert self.process.returncode == 0, err[-8000:]
        return json.loads(out)

    def stop(self):  # also twice
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def started(request, build):
    """The module's build, that conftest.py has started, or else now."""
    return request.config.stash.get(BUILDS, {}).get(request.module.__name__) or build()
