"""Count the bytes that pass a GPU's memory by its own counters, as counts.py does for a CPU by a simulated cache.

Nsight Compute (ncu) runs a process of ours and reads the counters around each kernel, whose caches it empties first.
What a kernel has written and its L2 still holds at its end is not counted: shapes that are to be compared outgrow it.
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.common import HERE
from bench.model.counts import Counted
from dla_kernels.terminal import progress
from dla_kernels.verify import functions

METRICS = {"read": "dram__bytes_read.sum", "written": "dram__bytes_write.sum"}
HOMES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")


def tool() -> str:
    installed = [path for home in HOMES for path in sorted(glob.glob(home))]
    found = shutil.which("ncu") or next(reversed(installed), None)
    if found is None:
        raise FileNotFoundError("Nsight Compute (ncu) is not installed; it is a package of the CUDA toolkit")
    return found


def run_under_ncu(backend: str, cases: Sequence[Counted], device: str = "cuda") -> None:
    """Run the cases in the process that is watched: the kernels of each call lie in a range that bears its name."""
    ours = functions(backend)
    torch.autograd.set_multithreading_enabled(False)  # a range is one thread's, and backward would run in another
    for case in progress(cases, "ncu"):
        run = case.work(device).run(case.which, ours)
        run()
        torch.cuda.synchronize()
        with torch.cuda.profiler.profile(), torch.cuda.nvtx.range(str(case)):
            run()
            torch.cuda.synchronize()


def parse(text: str) -> dict[str, dict[str, int]]:
    """Return bytes by the range's name, from ncu's page of raw values: names, units, then a line for each kernel."""
    lines = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if not lines:
        return {}
    names, units, *kernels = lines
    totals: dict[str, dict[str, int]] = {}
    for cells in kernels:
        kernel = dict(zip(names, cells))
        total = totals.setdefault(kernel["Kernel Name"], dict.fromkeys(METRICS, 0))
        for what, metric in METRICS.items():
            if (unit := units[names.index(metric)]) != "byte":
                raise RuntimeError(f"ncu: expected {metric} in bytes, got it in {unit}")
            total[what] += int(float(kernel[metric].replace(",", "")))
    return totals


def counters(cases: Sequence[Counted], backend: str = "cuda") -> dict[str, dict[str, int]]:
    """Return {"read": bytes, "written": bytes} of each case, over all its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        # The GPU's clocks are left alone, for its other users: bytes do not depend on them.
        command = [tool(), "--metrics", ",".join(METRICS.values()), "--clock-control", "none"]
        command += ["--profile-from-start", "off", "--nvtx", "--print-nvtx-rename", "kernel"]
        command += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)]
        command += [sys.executable, "-m", "bench.model.ncu", "--watched", backend, json.dumps(cases)]
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.DEVNULL, check=False)  # shows its progress
        said = log.read_text() if log.exists() else ""
        if done.returncode or "==ERROR==" in said:
            errors = [line for line in said.splitlines() if line.startswith("==ERROR==")]
            raise RuntimeError(f"ncu ended with {done.returncode}: {' '.join(errors)}")
        found = parse(said)
    names = list(map(str, cases))
    if not found or not set(found) <= set(names):
        raise RuntimeError(f"ncu: expected kernels of {names[0]} and so on, got those of {', '.join(found) or 'none'}")
    return {name: found.get(name, dict.fromkeys(METRICS, 0)) for name in names}  # a view has no kernel


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.model.ncu", description=__doc__)
    parser.add_argument("--watched", nargs=2, metavar=("BACKEND", "CASES"), required=True, help="by ncu, see above")
    backend, cases = parser.parse_args().watched
    run_under_ncu(backend, Counted.from_argument(cases))
