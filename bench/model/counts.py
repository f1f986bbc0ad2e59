"""Count what a call costs instead of timing it, since a shared machine cannot blur a count.

valgrind's callgrind counts the instructions of the CPU kernels and the bytes that pass a simulated cache. torch counts
calls into it, allocations, and the bytes that stay alive, those for the backward pass among them. `bench/budgets.json`
holds what these and the launches of the CUDA kernels may be; `python -m bench.model.counts --write` makes it anew.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from bench.common import HERE, Shape
from bench.devices import Call, Calls, memory_changes
from bench.ops.suites import shapes_of
from bench.ops.work import DTYPES, Work, every_op, work_of
from dla_kernels.terminal import progress

BUDGETS = HERE / "budgets.json"
SHAPES = (Shape(4, 2, 32, 8, 4), Shape(4, 8, 64, 16, 4))  # one that fits in the simulated cache, and one that does not
PASSES = ("forward", "backward")
LINE, CACHE = 64, 1 << 18  # bytes
KERNELS = "_C_cpu"  # in the path of the library whose instructions are counted


class Counted(NamedTuple):
    """One call that is counted; a list of them goes to the process that is watched, on its command line."""

    op: str
    shape: Shape
    which: str  # one of PASSES
    dtype: str = "fp32"

    def __str__(self) -> str:
        return f"{self.op} {self.shape} {self.dtype} {self.which}"

    def work(self, device: str = "cpu") -> Work:
        return work_of(self.op, self.shape, DTYPES[self.dtype], device)

    @classmethod
    def from_argument(cls, text: str) -> list[Counted]:
        return [cls(op, Shape(*shape), which, dtype) for op, shape, which, dtype in json.loads(text)]


def budgeted() -> list[Counted]:
    """Return the calls that have a budget."""
    return [Counted(op, shape, which) for op in every_op() for shape in shapes_of(op, SHAPES) for which in PASSES]


IN_PLACE = ("rescale", "layer_update")


def costs(call: Call) -> dict[str, int]:
    """Count calls into torch, allocations, and the bytes alive after a call: outputs, and what autograd keeps."""
    call()
    with Calls() as calls:
        call()
    alive: list[object] = []
    changes = memory_changes(lambda: alive.append(call()))
    return {"calls": calls.count, "allocations": sum(c > 0 for c in changes), "alive": sum(changes)}


def counted(work: Work, which: str, f: Any) -> dict[str, int]:
    """Return the costs of a pass; of the forward pass also when it is recorded for a backward pass, and in place."""
    found = costs(work.run(which, f))
    if which == "forward":
        with torch.enable_grad():
            recorded = costs(lambda: work.call(f, work.leaves))
        found |= {f"recorded {what}": n for what, n in recorded.items()}
    if which == "forward" and work.op in IN_PLACE:
        own = [x.clone() for x in work.tensors]
        inplace = SimpleNamespace(**{work.op: partial(getattr(f, work.op), inplace=True)})
        with torch.no_grad():
            found |= {f"in place {what}": n for what, n in costs(lambda: work.call(inplace, own)).items()}
    return found


def count_calls() -> dict[str, dict[str, int]]:
    import dla_kernels as dla

    torch.set_num_threads(1)
    return {str(case): counted(case.work(), case.which, dla) for case in budgeted()}


# ---- callgrind ----

# Only what lies between begin() and end() is simulated, with caches that are empty at first; all else runs ten times
# as fast.
REQUESTS = """
#include <valgrind/callgrind.h>
extern "C" void begin() { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
extern "C" void end() { CALLGRIND_STOP_INSTRUMENTATION; CALLGRIND_DUMP_STATS; }
"""


def compiled_requests(folder: Path) -> Path:
    """Compile REQUESTS to a library that Python can call; return its path."""
    source, library = folder / "requests.cpp", folder / "requests.so"
    source.write_text(REQUESTS)
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def run_under_callgrind(library: str, cases: Sequence[Counted]) -> None:
    """Run the cases in the process that is watched: each call makes a dump of its own, in the order of the cases."""
    import dla_kernels as dla

    requests = ctypes.CDLL(library)
    torch.set_num_threads(1)
    for case in progress(cases, "callgrind"):
        run: Callable = case.work().run(case.which, dla)
        run()
        requests.begin()
        run()
        requests.end()


def parse(path: Path) -> dict[str, int]:
    """Return the instructions of the kernels' library, and the bytes for which they missed the last cache."""
    names: dict[str, str] = {}
    events: list[str] = []
    totals: dict[str, int] = {}
    own = inside_call = False
    for line in path.read_text().splitlines():
        if found := re.match(r"(c?ob)=\((\d+)\)(?: (.*))?", line):
            which, number, name = found.groups()
            names.setdefault(number, name or "")
            if which == "ob":
                own = KERNELS in names[number]
        elif line.startswith("events: "):
            events = line.split()[1:]
        elif line.startswith("calls="):
            inside_call = True  # the next line's cost is the callee's
        elif found := re.match(r"[+*\d-]\S* ([\d ]+)$", line):
            if own and not inside_call:
                for event, cost in zip(events, found.group(1).split()):
                    totals[event] = totals.get(event, 0) + int(cost)
            inside_call = False
    return {
        "instructions": totals.get("Ir", 0),
        "read": LINE * totals.get("DLmr", 0),
        "written": LINE * totals.get("DLmw", 0),
    }


def callgrind(cases: Sequence[Counted], isa: str = "x86-64-v3") -> dict[str, dict[str, int]]:
    """Return the counts of each case, on one core, with a last-level cache of CACHE bytes."""
    tool = shutil.which("valgrind")
    if tool is None:
        raise FileNotFoundError("valgrind is not installed; on Debian: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out, log, library = Path(folder) / "out", Path(folder) / "log", compiled_requests(Path(folder))
        command = [tool, "--tool=callgrind", "--instr-atstart=no", "--cache-sim=yes", f"--LL={CACHE},16,{LINE}"]
        command += ["--D1=32768,8,64", "--I1=32768,8,64", f"--callgrind-out-file={out}", f"--log-file={log}"]
        command += [sys.executable, "-m", "bench.model.counts", "--watched", str(library), json.dumps(cases)]
        environment = os.environ | {"DLA_KERNELS_ISA": isa, "TRITON_INTERPRET": "0", "DLA_KERNELS_SIMT": "0"}
        environment["DLA_KERNELS_L2"] = str(CACHE)  # the kernels cut their blocks by it
        environment.pop("DLA_KERNELS_POISON", None)  # set by the tests: it fills scratch memory
        done = subprocess.run(command, env=environment, cwd=HERE.parent, check=False)  # shows its progress
        if done.returncode:
            raise RuntimeError(f"valgrind ended with {done.returncode}: {log.read_text()[-2000:]}")
        return {str(case): parse(Path(f"{out}.{i}")) for i, case in enumerate(cases, 1)}


def measured() -> dict[str, dict[str, int]]:
    watched = callgrind(budgeted())
    return {name: costs | watched[name] for name, costs in count_calls().items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.model.counts", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {BUDGETS.relative_to(HERE.parent)}")
    parser.add_argument("--watched", nargs=2, metavar=("LIBRARY", "CASES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.watched:
        library, cases = args.watched
        return run_under_callgrind(library, Counted.from_argument(cases))
    found = measured()
    # Launches of the CUDA kernels are kept: tests/test_cuda_launches.py counts them, through the shim or on a GPU.
    found["launches"] = json.loads(BUDGETS.read_text())["launches"]
    text = "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(costs)}" for name, costs in found.items()) + "\n}\n"
    if args.write:
        BUDGETS.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
