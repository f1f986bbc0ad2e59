"""What a call costs is counted: it is within the budgets of bench/budgets.json, and as the traffic model predicts."""

import gc
import json
import platform
import shutil

import pytest
import torch

import dla_kernels as dla
from bench.devices import memory_changes
from bench.model import counts, formulas
from bench.ops.work import every_op, work_of
from dla_kernels.backends import BACKENDS

BUDGETS = {name: costs for name, costs in json.loads(counts.BUDGETS.read_text()).items() if name != "launches"}
CASES = counts.budgeted()
BY_CALLGRIND = ("instructions", "read", "written")
# With another compiler the number of instructions is somewhat different.
MORE = 1.15
ANEW = "if that is meant, run: python -m bench.model.counts --write"


def test_every_counted_case_has_a_budget():
    assert list(BUDGETS) == [str(case) for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calls_allocations_and_bytes_alive_are_those_of_the_budget(case):
    """There is no call into torch, no allocation and no kept tensor more than before, and none less goes unnoticed."""
    torch.use_deterministic_algorithms(False)  # filling fresh memory would count
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = counts.counted(case.work(), case.which, dla)
    finally:
        torch.set_num_threads(threads)
    budget = BUDGETS[str(case)]
    assert found == {what: n for what, n in budget.items() if what not in BY_CALLGRIND}, ANEW


@pytest.mark.parametrize("op", every_op())
def test_no_memory_outlives_the_results_of_a_call(op):
    """No cycle of references keeps memory until the garbage collector comes by."""
    work = work_of(op, counts.SHAPES[0])
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):  # the first call keeps what is made once
            changes = memory_changes(lambda: bool(work.call(dla, work.leaves)))
    finally:
        gc.enable()
    assert changes and sum(changes) == 0


@pytest.fixture(scope="module")
def watched():
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed; on Debian: apt-get install valgrind")
    if platform.machine() != "x86_64":
        pytest.skip("the budgets are for x86-64")
    assert BACKENDS["cpu"].available
    return counts.callgrind(CASES)


@pytest.mark.slow
def test_instructions_are_within_the_budget(watched):
    over = {
        name: (costs["instructions"], BUDGETS[name]["instructions"])
        for name, costs in watched.items()
        if not BUDGETS[name]["instructions"] / MORE <= costs["instructions"] <= MORE * BUDGETS[name]["instructions"]
    }
    assert over == {}, ANEW


ROWS_ALONE = ("gap", "scan", "refresh", "attend")  # no maps, or gradients that are expanded views
# What the model leaves out, in rows [B, C]: filters of each sample and the sums that are their gradients, gates; and
# weights, which each block of samples reads again.
SCRATCH = {"light_step": 220, "base_step": 55, "layer_update": 20, "depthwise": 22}
TWICE = ("layer_update", "norm_add")  # where the large maps certainly pass the cache twice


@pytest.mark.slow
@pytest.mark.parametrize("shape", counts.SHAPES, ids=str)
def test_the_traffic_model_predicts_the_bytes_that_pass_the_cache(watched, shape):
    """Caches begin empty. The bytes are those of one pass where all maps fit, else up to those of two."""
    small = shape == counts.SHAPES[0]
    for case in CASES:
        op, at, which, _ = case
        if at.HW != shape.HW or op in ROWS_ALONE:
            continue
        costs, expected = watched[str(case)], formulas.traffic(op, which, at)
        again = 0 if small else expected.again
        scratch = SCRATCH.get(op, 10) * 4 * at.T * at.B * at.C * (at.T if op == "base_step" else 1)
        name = f"{op} {which}: {costs['read']} read, {costs['written']} written, expected {expected}"
        assert expected.read + (again if op in TWICE else 0) <= 1.01 * costs["read"], name
        assert costs["read"] <= 1.03 * (expected.read + again) + scratch, name
        assert expected.written <= 1.01 * costs["written"], name
        assert costs["written"] <= 1.03 * expected.written + scratch, name


def test_the_parser_counts_a_function_without_those_it_calls(tmp_path):
    (tmp_path / "out").write_text(
        "events: Ir DLmr DLmw\n"
        "ob=(1) /somewhere/_C_cpu.so\nfn=(1) mix\n10 100 2 1\n"
        "cob=(2) /somewhere/libc.so\ncfn=(2) memcpy\ncalls=3 0\n11 5000 70 70\n"
        "+1 20 1 0\n"
        "ob=(2)\nfn=(2)\n7 5000 70 70\n"
        "ob=(1)\nfn=(3) other\n* 3 0 0\n"
    )
    found = counts.parse(tmp_path / "out")
    assert found == {"instructions": 123, "read": 3 * counts.LINE, "written": counts.LINE}
