"""The guardian ends what a run of the tests leaves behind, however the run ends: also by Ctrl-C, also killed.

It waits, as a process of its own, for the end of its standard input, which only the run can keep open. Then it kills
every process that has inherited the run's mark, workers and detached compilers among them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "DLA_KERNELS_TEST_RUN"  # in the environment of all that a run starts


def watch_over_this_process():
    """Start the guardian of this run, and return it; closing its standard input tells it that the run has ended."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-S", __file__, mark]
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    guardian = subprocess.Popen(command, env=unmarked, stdin=subprocess.PIPE, start_new_session=True)
    guardian.outer, os.environ[MARK] = os.environ.get(MARK), mark  # a run within a run has its own
    return guardian


def release(guardian):
    """Tell the guardian that the run has ended, and wait until nothing of the run is left."""
    guardian.stdin.close()
    guardian.wait()
    del os.environ[MARK]
    if guardian.outer:
        os.environ[MARK] = guardian.outer


def marked(mark):
    """Yield the processes that have the mark in the environment they began with; none where there is no /proc."""
    wanted = f"{MARK}={mark}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended, or is another user's
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


# ---- as a plugin of pytest ----

_watching = []


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers have the mark of their run
        _watching.append(watch_over_this_process())


def pytest_unconfigure():
    while _watching:
        release(_watching.pop())


# ---- as a process ----


def main():
    sys.stdin.read()
    while processes := list(marked(sys.argv[1])):  # again, for what they had just started
        for pid in processes:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
