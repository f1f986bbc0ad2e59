"""The traffic model equals figures worked out by hand, and the runner times the ops that are chosen."""

import contextlib
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dla_kernels as dla
from bench import run
from bench.common import Shape
from bench.devices import Calls, Cpu
from bench.model import counts, formulas, ncu, predict, scaling
from bench.ops import timing
from bench.ops.suites import SUITES, shapes_of
from bench.ops.work import PASSES, every_op, work_of

ROOT = Path(__file__).parent.parent
SHAPE = Shape(3, 2, 16, 4, 4)  # a map has 512 pixels, 2048 bytes; R = 4
M, S, ROW = 2048, 6144, 128


@pytest.mark.parametrize(
    ("op", "which", "one_pass", "two_passes"),
    [
        ("gap", "forward", S + 3 * ROW, S + 3 * ROW),
        ("rescale", "forward", 2 * S + 3 * ROW, 2 * S + 3 * ROW),
        ("rescale", "backward", 3 * S + 6 * ROW, 3 * S + 6 * ROW),
        ("mix", "forward", S + M + 3 * ROW, S + M + 3 * ROW),
        ("norm_add", "backward", 3 * M, 5 * M),
        ("depthwise", "forward", 2 * M + 2 * ROW + 9 * 64, 2 * M + 2 * ROW + 9 * 64),
    ],
)
def test_bytes_are_those_worked_out_by_hand(op, which, one_pass, two_passes):
    found = formulas.traffic(op, which, SHAPE)
    assert [found.bytes(path) for path in formulas.PATHS] == [one_pass, two_passes]


@pytest.mark.parametrize(("which", "once"), [("forward", 2), ("backward", 3)])
def test_a_stage_moves_what_the_design_says(which, once):
    """That is 2 S or 3 S forward and 3 S or 4 S backward, with all else under 2 %."""
    shape = Shape(12, 128, 64, 32, 4)
    found = formulas.traffic("layer_update", which, shape, "bf16")
    for passes, path in zip((once, once + 1), formulas.PATHS):
        assert 1 <= found.bytes(path) / (passes * shape.S / 2) < 1.02


def test_operations_of_a_cell_are_those_worked_out_by_hand():
    R, C, rows = 4, 16, 6
    joint = formulas.Products.of(formulas.CELLS["scan"], C, R)
    assert joint == (2 * R * C, 2 * R * C, 6 * C * R)
    assert formulas.traffic("scan", "forward", SHAPE).flops == rows * 10 * C * R
    assert formulas.traffic("refresh", "forward", SHAPE).flops == rows * 8 * C * R + 2 * 2 * C * R


def test_both_passes_are_forward_plus_backward():
    for op in every_op():
        parts = (formulas.traffic(op, which, SHAPE) for which in ("forward", "backward"))
        assert formulas.traffic(op, "both", SHAPE) == next(parts).plus(next(parts))


@pytest.mark.parametrize("op", every_op())
def test_the_model_reads_at_least_all_maps_and_at_most_all_inputs(op):
    """The bytes that it reads are at least those of the maps, and at most those of all tensors that the op takes."""
    shape = shapes_of(op, (SHAPE,))[0]
    work, found = work_of(op, shape), formulas.traffic(op, "forward", shape)
    if op not in ("attend", "base_step"):  # one reads few filters; the other reads values again for each layer
        assert found.read <= sum(x.nbytes for x in work.tensors)
    assert found.read >= sum(x.nbytes for x in work.tensors[: work.maps])


def test_predicted_time_is_that_of_bytes_and_of_operations():
    machine = predict.Machine(bytes_per_ms=100.0, flops_per_ms=10.0)
    found = formulas.Traffic(300, 200, 100, 50)
    assert predict.predicted_ms(found, machine, "one pass") == 5 + 5
    assert predict.predicted_ms(found, machine, "two passes") == 6 + 5


# ---- scaling ----


def test_a_fit_recovers_the_constants_that_made_the_points():
    sizes = [1e5 * 2**i for i in range(10)]
    found = scaling.fit(sizes, [0.05 + 3e-7 * s for s in sizes])
    assert (found.fixed, found.power) == (pytest.approx(0.05), 1.0)
    assert found.off < 1e-9
    assert scaling.fit(sizes, [1e-9 * s**1.5 for s in sizes]).power == 1.5


def test_the_crossing_of_two_curves_is_found():
    sizes = [1.0, 2.0, 4.0, 8.0]
    at = scaling.crossing(sizes, [1.0, 1.0, 1.0, 1.0], [0.25, 0.5, 1.5, 4.0])
    assert 2 < at < 4
    assert math.isclose(at, 2 * 2 ** (math.log(2) / math.log(3)))
    assert scaling.crossing(sizes, [1.0] * 4, [2.0] * 4) is None


# ---- the runner ----


def run_bench(monkeypatch, capsys, *options):
    monkeypatch.setattr("sys.argv", ["bench.run", "--device", "cpu", *options])
    monkeypatch.setattr(run.common, "restart_with_allocator", lambda: None)
    with pytest.raises(SystemExit) as stop:
        run.main()
    return stop.value.code, capsys.readouterr()


def test_the_runner_times_the_chosen_ops_alone(monkeypatch, capsys, tmp_path):
    files = ["--csv", str(tmp_path / "out.csv"), "--plot", str(tmp_path / "out.png")]
    chosen = ["--suite", "smoke", "--ops", "mix,scan", "--passes", ",".join(PASSES), "--peers", "eager,lstm,copy"]
    code, printed = run_bench(monkeypatch, capsys, *chosen, *files, "--rounds", "2", "--dtypes", "fp32,bf16", "--json")
    assert code == 0
    rows = json.loads(printed.out)["rows"]
    expected = {
        (op, str(s), d, p) for op in ("mix", "scan") for s in SUITES["smoke"] for d in ("fp32", "bf16") for p in PASSES
    }
    assert {(r["op"], r["name"], r["dtype"], r["pass"]) for r in rows} == expected
    for row in rows:
        lstm = {"cpu lstm", "torch lstm"} if row["op"] == "scan" else set()
        assert set(row["ms"]) == {"cpu", "eager", "copy"} | lstm
        assert sum(row["calls"]["cpu"].values()) < sum(row["calls"]["eager"].values())
        assert row["notes"] == {}
    with open(tmp_path / "out.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(row["ms"]) for row in rows)
    assert (tmp_path / "out.png").stat().st_size > 10_000
    text = timing.report(rows, ["cpu"])
    assert "mix, ms\n" in text and "scan, ms\n" in text


def test_a_wrong_op_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(timing, "parity", lambda case, backend: (1.0, 0.1))
    code, printed = run_bench(monkeypatch, capsys, "--ops", "gap", "--rounds", "2")
    assert code == 1
    assert "off by 1, allowed 0.1: not timed" in printed.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ops", "conv"], "expected some of attend, base_step"),
        (["--suite", "huge"], "expected some of cifar, imagenet, latency, smoke"),
        (["--ops", "gap", "--backends", "cuda"], "--backends: cuda is not available"),
        (["--ops", "gap", "--shapes", "C7-"], "--shapes: no shape of smoke holds 'C7-'"),
    ],
)
def test_errors_say_what_was_expected(monkeypatch, capsys, options, said):
    monkeypatch.setattr(timing.BACKENDS["cuda"], "ops", None)
    monkeypatch.setattr(timing.BACKENDS["cuda"], "_tried", True)
    code, printed = run_bench(monkeypatch, capsys, *options)
    assert code != 0
    assert said in f"{code} {printed.err}"


def test_scaling_draws_what_it_measures(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(scaling, "AXES", {"T": (1, 2, 3), "HW": (2, 3, 4)})
    monkeypatch.setattr(scaling, "BASE", Shape(2, 2, 8, 3, 4))
    code, printed = run_bench(monkeypatch, capsys, "scaling", "--no-compile", "--rounds", "2", "--out", str(tmp_path))
    assert code == 0
    assert "layer_update around T2-B2-C8-HW3x3-r4" in printed.out
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert [(row["axis"], row["shape"][row["axis"]]) for row in rows[::2]] == [
        (axis, n) for axis, values in scaling.AXES.items() for n in values
    ]
    assert all(0 < scaling.floor_ms(row) < math.inf for row in rows)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_the_report_shows_predictions_beside_measurements(monkeypatch, capsys, tmp_path):
    code, printed = run_bench(
        monkeypatch, capsys, "model", "--suite", "smoke", "--ops", "mix", "--rounds", "2", "--out", str(tmp_path)
    )
    assert code == 0
    assert "over one pass" in printed.out
    assert len(json.loads((tmp_path / "model.json").read_text())["rows"]) == 4


# ---- counted bytes ----

CASES = [counts.Counted(op, SHAPE, which, "bf16") for op in ("mix", "gap") for which in ("forward", "backward")]
# This program stands for Nsight Compute: two kernels in the first range, none in the last, one in each other.
NCU = """
import json, pathlib, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
assert options["--metrics"] == "dram__bytes_read.sum,dram__bytes_write.sum" and "--csv" in options
assert options["-m"] == "bench.model.ncu" and sys.argv[-3:-1] == ["--watched", "cuda"]
names = [f"{op} T{T}-B{B}-C{C}-HW{HW}x{HW}-r{r} {dtype} {which}" for op, (T, B, C, HW, r), which, dtype in
         json.loads(sys.argv[-1])]
lines = ["==PROF== Connected to process 7"]
lines += ['"ID","Kernel Name","Context","dram__bytes_read.sum","dram__bytes_write.sum"', '"","","","byte","byte"']
lines += [f'"{i}","{name}","1","1,000,000","2,000"' for i, name in enumerate([names[0], *names[:-1]])]
pathlib.Path(options["--log-file"]).write_text("\\n".join(lines) + "\\n")
"""


def stand_in_for_ncu(monkeypatch, tmp_path, program):
    tool = tmp_path / "ncu"
    tool.write_text(f"#!{sys.executable}\n{program}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_counters_of_a_gpu_are_summed_over_kernels(monkeypatch, tmp_path):
    stand_in_for_ncu(monkeypatch, tmp_path, NCU)
    found = list(ncu.counters(CASES).values())
    once = {"read": 1_000_000, "written": 2_000}
    assert found == [{what: 2 * n for what, n in once.items()}, once, once, {"read": 0, "written": 0}]


def test_failures_of_ncu_are_raised_with_their_reason(monkeypatch, tmp_path):
    denied = NCU.replace("==PROF== Connected to process 7", "==ERROR== ERR_NVGPUCTRPERM - no permission")
    stand_in_for_ncu(monkeypatch, tmp_path, denied)
    with pytest.raises(RuntimeError, match="ERR_NVGPUCTRPERM"):
        ncu.counters(CASES)
    stand_in_for_ncu(monkeypatch, tmp_path, NCU.replace("byte\"'", "Kbyte\"'"))
    with pytest.raises(RuntimeError, match="got it in Kbyte"):
        ncu.counters(CASES)
    stand_in_for_ncu(monkeypatch, tmp_path, NCU.replace("lines += [", "[]; _ = ["))
    with pytest.raises(RuntimeError, match="got those of none"):
        ncu.counters(CASES)


def test_each_call_under_ncu_has_a_range_of_its_own(monkeypatch):
    """The process that ncu watches runs here on a CPU: each range holds one call, forward or backward, in a thread."""
    seen = []

    @contextlib.contextmanager
    def named(name):
        with Calls() as calls:
            yield
        seen.append((name, calls.count))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "profile", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda.nvtx, "range", named)
    try:
        ncu.run_under_ncu("cpu", CASES[:2], device="cpu")
        assert not torch._C._is_multithreading_enabled()
    finally:
        torch.autograd.set_multithreading_enabled(True)
    assert seen == [(str(case), 1) for case in CASES[:2]]


def test_the_report_shows_counted_bytes_beside_predictions(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(predict, "callgrind", lambda cases: {str(c): {"read": 20000, "written": 2560} for c in cases})
    options = [
        "--suite",
        "smoke",
        "--ops",
        "norm_add",
        "--shapes",
        "C16",
        "--passes",
        "backward",
        "--out",
        str(tmp_path),
    ]
    code, printed = run_bench(monkeypatch, capsys, "model", "--counters", *options)
    assert code == 0
    (row,) = json.loads((tmp_path / "counters.json").read_text())["rows"]
    read, again = 2 * M, 2 * M
    assert (row["model"]["read"], row["model"]["again"]) == (read, again)
    assert printed.out.splitlines()[-1].split()[-3:-1] == [f"{20000 / n:.2f}" for n in (read, read + again)]


def test_only_calls_that_compute_are_counted():
    work = work_of("mix", SHAPE)
    assert Cpu().launches(work.run("forward", dla)) == {"kernels": 1.0, "copies": 0.0}


@pytest.mark.slow
def test_pytest_benchmark_compares_two_runs(tmp_path):
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "bench/ops/gap.py", "-k", "C2048 and forward"]
    command += ["--benchmark-only", "--benchmark-autosave", "--benchmark-storage", f"file://{tmp_path}"]
    command += ["--benchmark-max-time", "0.1", "--benchmark-min-rounds", "2"]
    # Under pytest-xdist pytest-benchmark times nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    for extra in ([], ["--benchmark-compare"]):
        done = subprocess.run(
            [*command, *extra], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
    assert "(NOW)" in done.stdout and "(0001" in done.stdout
    saved = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert len(saved) == 2
    assert all(len(run["benchmarks"]) == 2 for run in saved)  # eager and ours
