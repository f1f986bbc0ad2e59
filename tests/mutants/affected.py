"""This module knows which tests can notice that a source has changed: those of its backends and of the ops made of it.

It is a plugin of pytest in the processes that try a change: it drops the other cases, and brings those that are quick
to say something to the front.
"""

import os
import re
import signal
from collections import defaultdict
from functools import cache
from pathlib import Path

from .sites import ROOT

OPS = sorted(page.stem for page in (ROOT / "docs/ops").glob("*.md"))
CHANGED, BUILT = "DLA_KERNELS_MUTANT", "DLA_KERNELS_MUTANT_BACKENDS"  # told to the plugin: a file, and names
UNDER_WAY = "under_way"
BACKENDS = {
    "csrc/cells": {"cpu", "cuda"},
    "csrc/cpu": {"cpu"},
    "csrc/cuda": {"cuda"},
    "triton_ops": {"triton"},
    "dla_kernels/ops": {"cpu", "cuda", "triton", "reference"},
}
# Test files without a backend among their parameters that use one only, or none, or read sources as text. All others
# use any.
OF_ONE_BACKEND = {
    r"test_(adding_an_op|house|walk|tiers|mutants|records|simt_shim|cuda_build|machine_code|triton_build)": "none",
    r"test_cuda_(?!plan)\w+": "cuda",  # the plan is in the CPU's library too
    r"test_triton\w*": "triton",
    r"test_(isa|nn|models|convert|survey|ecosystem|bench\w*|traffic|model|examples|reference|docs|soak)": "cpu",
}
CALLED_BY = {"base_step": {"depthwise", "attend", "mix", "scan", "refresh"}}  # ops that are calls of others
# A case that computes, or that waits, for so many seconds hangs: a loop has lost its end.
LONGEST, LONGEST_SLOW = 40, 600
LONGEST_WAIT = 6  # times as long: others may have the cores


def backends_of(file):
    if Path(file).stem in ("plan", "planner"):  # the CPU's library answers what is asked of the plan
        return {"cpu", "cuda"}
    return next(backends for area, backends in BACKENDS.items() if file.startswith(area + "/"))


# ---- from a source to the ops that are made of it ----


@cache
def users():
    """Return, for each file, the files that include or import it."""
    found = defaultdict(set)
    for path in [*ROOT.glob("csrc/**/*.*"), *ROOT.glob("triton_ops/**/*.py"), *ROOT.glob("dla_kernels/ops/*.py")]:
        for named in names_in(path):
            found[named].add(path.relative_to(ROOT).as_posix())
    return found


def names_in(path):
    text = path.read_text()
    if path.suffix == ".py":
        package = [path.parent, path.parent.parent]
        for dots, module, names in re.findall(r"^from (\.+)([\w.]*) import ([^(\n]+|\([^)]*\))", text, re.MULTILINE):
            base = package[len(dots) - 1].joinpath(*module.split(".")) if module else package[len(dots) - 1]
            candidates = [base.with_suffix(".py"), base / "__init__.py"]
            candidates += [base / f"{name}.py" for name in re.findall(r"\w+", names)]
            yield from (c.relative_to(ROOT).as_posix() for c in candidates if c.exists())
    else:
        for named in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
            if (path.parent / named).exists():
                yield (path.parent / named).resolve().relative_to(ROOT).as_posix()


@cache
def ops_of(file):
    """Return the ops that are made of a source, by the names of the files that use it; all of them if none has one."""
    seen, todo = set(), [file]
    while todo:
        at = todo.pop()
        if at not in seen and not at.endswith("__init__.py"):
            seen.add(at)
            todo += users()[at]
    stems = {Path(at).stem.removesuffix("_bwd") for at in seen}
    found = {op for op in OPS if op in stems}
    if not found or stems & {"dispatch", "instruction_set"} or "/cells/" in file:  # cells reach the ops through a table
        return set(OPS)
    return found | {op for op, called in CALLED_BY.items() if found & called}


# ---- from a case to what it calls ----


def calls(item):
    """Return the backends and the ops of a case."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    served = {v.name for name, v in params.items() if name in ("backend", "any_backend")}
    ops = {re.sub("(_bwd|_)$", "", v) for v in params.values() if isinstance(v, str)} & set(OPS)
    stem = item.path.stem
    if not served:
        served = {next((one for pattern, one in OF_ONE_BACKEND.items() if re.fullmatch(pattern, stem)), None)} - {None}
    if not ops and stem.removeprefix("test_") in OPS:
        ops = {stem.removeprefix("test_")}
    return served or {"cpu", "cuda", "triton", "reference"}, ops or set(OPS)


def pytest_collection_modifyitems(config, items):
    wanted = set(os.environ[BUILT].split(",")), ops_of(os.environ[CHANGED])
    kept = [item for item in items if all(a & b for a, b in zip(calls(item), wanted))]
    # Instructions are counted of the library that users get; this one is compiled fast.
    kept = [item for item in kept if "watched" not in item.fixturenames]
    config.hook.pytest_deselected(items=list(set(items) - set(kept)))
    turns = defaultdict(int)

    def rank(item):
        """Return the place of a case: of each test its first case, then of each its second; what takes long waits."""
        turns[item.parent.nodeid, item.originalname] += 1
        slow = item.get_closest_marker("slow") is not None
        backends = calls(item)[0]
        return slow, backends == {"triton"}, len(backends) > 1, turns[item.parent.nodeid, item.originalname]

    ranks = {item: rank(item) for item in kept}
    items[:] = sorted(kept, key=ranks.get)


def pytest_runtest_setup(item):
    """Set two alarms whose signals end the process, whatever it is in, and write which test that is into a file."""
    Path(UNDER_WAY).write_text(item.nodeid)
    set_alarms(LONGEST_SLOW if item.get_closest_marker("slow") else LONGEST)


def pytest_sessionfinish():
    set_alarms(0)


def set_alarms(seconds):
    """Set alarms for when this process has computed for so long, and for when it seems to wait for what never comes."""
    for timer, alarm, after in (
        (signal.ITIMER_PROF, signal.SIGPROF, seconds),
        (signal.ITIMER_REAL, signal.SIGALRM, seconds * LONGEST_WAIT),
    ):
        signal.signal(alarm, signal.SIG_DFL)
        signal.setitimer(timer, after)
