"""The benchmarks' arithmetic is right, and the GPU benchmark runs from end to end on a stand-in with a fake clock."""

import itertools
import json
import os
import re

import pytest
import sanitized

from bench import devices, run
from bench.common import Shape, Target
from bench.report import gpu_tables
from bench.targets import blocks, gpu, gpu_inputs, gpu_networks, gpu_plans, gpu_steps, networks
from dla_kernels import reference
from dla_kernels.verify import heads_of

BF16_MB = {  # design section 7, in the order of its rows
    (12, 128, 64): 201,
    (12, 128, 128): 101,
    (12, 128, 256): 50,
    (3, 256, 256): 1233,
    (4, 256, 512): 822,
    (6, 256, 1024): 617,
    (23, 256, 1024): 2363,
    (3, 256, 2048): 154,
}


@pytest.mark.parametrize("row", gpu_inputs.ROWS[:8], ids=str)
def test_map_bytes_of_a_row_are_those_of_the_design(row):
    assert gpu_inputs.map_bytes(row, "bf16") / 1e6 == pytest.approx(BF16_MB[row[:3]], abs=0.6)
    assert gpu_inputs.map_bytes(row, "fp32") == 2 * gpu_inputs.map_bytes(row, "bf16")


def test_rows_at_small_batches_are_the_cifar_rows():
    assert [row._replace(B=128) for row in gpu_inputs.ROWS[8:]] == 2 * list(gpu_inputs.ROWS[:3])
    assert {row.B for row in gpu_inputs.ROWS[8:]} == {8, 1}


@pytest.mark.parametrize(
    ("size", "free", "copies"),
    [(201, 10**6, 2), (50, 10**6, 4), (12, 10**6, 15), (1, 10**6, 128), (50, 500, 1), (1000, 500, 1)],
)
def test_rotating_inputs_fill_three_times_the_cache_where_memory_allows(size, free, copies):
    assert gpu_inputs.copies_needed(size, l2=60, free=free) == copies


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2", "v100-sxm2"),
        ("NVIDIA", "gpu"),
    ],
)
def test_a_device_name_becomes_a_folder_name(name, folder):
    assert devices.slug(name) == folder


def test_rows_are_chosen_by_whole_parts_of_their_names_in_the_order_asked():
    named = gpu.chosen(gpu_inputs.ROWS, "B1-C64,C2048")
    assert [(row.B, row.C) for row in named] == [(1, 64), (256, 2048)]


def row_of(shape, **ms):
    """Return a row of S = 1 GB per unit of T whose copy runs at 4000 GB/s."""
    S = shape.T * 10**9
    return {
        "shape": shape._asdict(),
        "name": str(shape),
        "dtype": "bf16",
        "S": S,
        "ms": {"copy/copy": 2 * S / 4e9, **{key.replace("__", "/").replace("_", " "): t for key, t in ms.items()}},
        "launches": {"forward/ours": {"kernels": 1.0, "copies": 1.0}, "backward/ours": {"kernels": 2.0, "copies": 0.0}},
    }


def test_targets_follow_from_times_bytes_and_launches():
    row = row_of(Shape(6, 256, 1024, 14, 16), forward__ours=6.0, forward__ours_graph=5.0, forward__eager_graph=10.0)
    row["ms"] |= {"forward+backward/ours graph": 15.0, "forward+backward/eager": 15.0, "forward+backward/compile": 18.0}
    found = {target.name: target for target in gpu_tables.targets(row, full_gbs=4500.0)}
    # 3S = 18 GB in 5 ms: 3600 GB/s. 4S = 24 GB in 15 - 5 ms: 2400 GB/s.
    ratios = {name: (round(target.ratio, 3), target.limit, target.met) for name, target in found.items()}
    assert ratios == {
        "forward: 3S / copy bandwidth": (0.9, 0.85, True),
        "forward: 3S / full bandwidth": (0.8, 1.0, False),
        "backward: 4S / copy bandwidth": (0.6, 0.85, False),
        "forward: best peer / ours": (2.0, 1.3, True),
        "forward+backward: best peer / ours": (1.0, 1.3, False),
        "forward: launches": (2.0, 1, False),
        "backward: launches": (2.0, 2, True),
    }
    assert "compile not measured" in found["forward: best peer / ours"].why
    assert "compile not measured" not in found["forward+backward: best peer / ours"].why


@pytest.mark.parametrize(
    ("shape", "limit"), [((12, 128, 64, 32, 4), 3.0), ((12, 8, 64, 32, 4), 5.0), ((3, 256, 256, 56, 16), 1.3)]
)
def test_the_limit_over_the_best_peer_depends_on_the_row(shape, limit):
    assert gpu_tables.peer_limit(Shape(*shape)) == limit


def test_small_rows_have_no_bandwidth_target():
    row = row_of(Shape(1, 8, 64, 32, 4), forward__ours=1.0) | {"S": 10**6}
    assert {target.name for target in gpu_tables.targets(row, 4500.0)} == {"forward: launches", "backward: launches"}


def test_a_target_met_exactly_is_met():
    assert Target("", 1.0, 1.0, True, "").met
    assert Target("", 1.0, 1.0, False, "").met


@pytest.fixture(scope="module")
def stand_in():
    """Return a device at whose clock every look is a millisecond after the last."""
    return devices.StandIn(clock=itertools.count(step=0.001).__next__)


def run_on(stand_in, out, *options):
    return gpu.main(["--stand-in", "--rounds", "3", "--out", str(out), *options], stand_in)


def test_the_runner_measures_everything_it_names(stand_in, tmp_path, capsys):
    assert run_on(stand_in, tmp_path) == 0
    result = json.loads((tmp_path / "bench.json").read_text())
    shapes = [str(shape) for shape in gpu_inputs.REHEARSAL]
    assert [(row["dtype"], row["name"]) for row in result["rows"]] == [(d, s) for d in ("bf16", "fp32") for s in shapes]
    for row in result["rows"]:
        assert all(check["passed"] for check in row["parity"].values())
        assert set(row["notes"]) == {"cudnn lstm"}
        graphs = {f"{op}/{name}{graph}" for op in gpu.OPS for name in ("ours", "eager") for graph in ("", " graph")}
        assert set(row["ms"]) == graphs | {"copy/copy", "scan/ours lstm", "scan/cudnn lstm"}
        assert set(row["iqr_ms"]) == set(row["samples"]) == set(row["ms"])
        # The first look at the clock of a sample is one tick before the second, however many calls lie between.
        assert all(0 < time <= 1.001 for time in row["ms"].values())
        assert row["launches"]["backward/ours"] == {"kernels": 1.0, "copies": 0.0}
    layers = [str(layer) for layer in gpu_steps.REHEARSAL]
    assert [(row["dtype"], row["name"]) for row in result["layers"]] == [
        (d, s) for d in ("bf16", "fp32") for s in layers
    ]
    for row in result["layers"]:
        assert row["parity"]["passed"]
        assert row["notes"] == {}
        ops = {f"{op}/{name}{graph}" for op in gpu_steps.OPS for name in ("ours", "eager") for graph in ("", " graph")}
        assert set(row["iqr_ms"]) == set(row["samples"]) == set(row["ms"]) == ops | {"copy/copy"}
        assert row["launches"]["forward/ours"] == {"kernels": 1.0, "copies": 0.0}
    printed = capsys.readouterr().out
    text = (tmp_path / "bench.txt").read_text()
    assert "light_step: 2 of 2 targets met" in text
    assert text.strip() in printed
    assert "targets: " in text
    assert all(shape in text for shape in shapes)


def test_a_second_run_adds_to_the_first(stand_in, tmp_path, capsys):
    name = str(gpu_inputs.REHEARSAL[1])
    assert run_on(stand_in, tmp_path, "--dtypes", "fp32") == 0
    assert run_on(stand_in, tmp_path, "--dtypes", "bf16", "--rows", name, "--add", "--json") == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    shapes = [str(shape) for shape in gpu_inputs.REHEARSAL]
    assert [(row["dtype"], row["name"]) for row in rows] == [("bf16", name), ("fp32", shapes[0]), ("fp32", shapes[1])]


def test_no_row_is_measured_once_the_time_budget_is_spent(stand_in, tmp_path, capsys):
    assert run_on(stand_in, tmp_path, "--budget", "-1") == 1
    assert "left out: bf16" in capsys.readouterr().out


def test_a_wrong_op_is_not_timed(stand_in, tmp_path, capsys, monkeypatch):
    right = reference.layer_update

    def wrong(*args, **options):
        out, states = right(*args, **options)
        return [1.01 * x for x in out], states

    monkeypatch.setattr(
        gpu_inputs,
        "functions",
        lambda backend: type("", (), {"layer_update": staticmethod(wrong), "scan": staticmethod(reference.scan)}),
    )
    assert run_on(stand_in, tmp_path, "--dtypes", "fp32", "--rows", ",".join(map(str, gpu_inputs.REHEARSAL))) == 1
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert all(not row["ms"] and not row["parity"]["layer_update"]["passed"] for row in rows)
    assert "layer_update off by more than allowed: not timed" in capsys.readouterr().out


def test_the_bandwidth_target_of_a_light_step_counts_three_maps():
    row = {"name": str(gpu_steps.IMAGENET[0]), "dtype": "bf16", "S": 10**9, "launches": {}, "notes": {}}
    row["ms"] = {"copy/copy": 1.0, "forward/ours": 0.9, "forward/eager": 9.0}  # a copy moves four maps: 4 GB in 1 ms
    assert gpu_steps.shares(row)["ours"] == pytest.approx(3 / 0.9 / 4)
    (target,) = gpu_steps.targets(row)
    assert target.met and target.limit == 0.75
    row["ms"]["forward/ours"] = 1.1
    assert not gpu_steps.targets(row)[0].met


def test_a_wrong_light_step_is_not_timed(stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_steps, "layer_parity", lambda *args: (1.0, 0.1))
    name = str(gpu_steps.REHEARSAL[0])
    assert run_on(stand_in, tmp_path, "--dtypes", "fp32", "--rows", name) == 1
    (row,) = json.loads((tmp_path / "bench.json").read_text())["layers"]
    assert row["ms"] == {}
    assert "light_step off by more than allowed: not timed" in capsys.readouterr().out


def test_a_nan_fails_the_parity_check(stand_in):
    inputs = gpu_inputs.Inputs(gpu_inputs.REHEARSAL[0], "fp32", stand_in)
    error, allowed = gpu_inputs.layer_update_parity(inputs, chunk_bytes=1)  # sample by sample
    assert error <= allowed
    inputs.sets[0].xs[0][1, 2, 0, 0] = float("nan")
    error, allowed = gpu_inputs.layer_update_parity(inputs)
    assert not error <= allowed


def test_a_peer_that_fails_is_left_out_with_its_reason(stand_in, tmp_path, capsys, monkeypatch):
    def captured(calls):
        raise RuntimeError("no graphs today\nand a second line")

    monkeypatch.setattr(stand_in, "captured", captured, raising=False)
    assert run_on(stand_in, tmp_path, "--dtypes", "fp32") == 0
    row = json.loads((tmp_path / "bench.json").read_text())["rows"][0]
    assert row["notes"]["forward/ours graph"] == "RuntimeError: no graphs today"
    assert "forward/ours graph" not in row["ms"]
    assert "no graphs today" in capsys.readouterr().out


def test_bench_goes_to_the_gpu_where_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu, "main", lambda argv: asked.append(argv) or 0)
    monkeypatch.setattr("sys.argv", ["bench.run", "--device", "cuda", "--rows", "C64"])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert (stop.value.code, asked) == (0, [["--rows", "C64"]])


def test_the_tax_of_attention_is_relative_to_the_plain_network():
    row = networks.measure_depth(20, rounds=1, batch=2, size=8)
    kinds = ["plain", "dla_light/ours", "dla_light/eager", "dla_base/ours", "dla_base/eager", "dla_base/copying"]
    kinds += ["dia/ours", "dia/eager", "se/ours", "se/eager"]
    assert list(row["ms"]) == list(row["peak_bytes"]) == kinds
    assert all(peak > 0 for peak in row["peak_bytes"].values())
    row["ms"] = dict(zip(kinds, (100.0, 120.0, 150.0, 130.0, 180.0, 240.0, 110.0, 130.0, 101.0, 102.0)))
    assert networks.tax(row, "dla_light/ours") == pytest.approx(0.2)
    checks = {(name, target.name): target for name, target in networks.targets([row])}
    assert checks["dla_light_resnet20", "tax / eager tax"].met  # 0.2 / 0.5
    assert not checks["dla_base_resnet20", "tax / eager tax"].met  # 0.3 / 0.8
    assert checks["dla_base_resnet20", "tax / copying tax"].met  # 0.3 / 1.4
    assert checks["dia_resnet20", "tax / eager tax"].met  # 0.1 / 0.3
    assert re.search(r"dla_base_resnet20 +copying +240 +140%", networks.report([row]))


def test_what_attention_adds_to_inference_is_relative_to_the_plain_network():
    row = networks.measure_inference(20, rounds=1, batch=2, size=8)
    kinds = ["plain", "dia/ours", "dia/eager", "light/ours", "light/eager"]
    assert list(row["ms"]) == kinds
    row["ms"] = dict(zip(kinds, (100.0, 104.0, 112.0, 103.0, 105.0)))
    checks = {target.name: target for _, target in networks.inference_targets([row])}
    assert checks["dia, added to inference"].met  # 0.04
    assert not checks["light, added to inference"].met  # 0.03
    assert re.search(r"resnet20 +light +eager +105 +5.0%", networks.inference_report([row]))


def test_ends_of_blocks_have_targets_where_they_squeeze_and_have_a_shortcut():
    rows = [
        blocks.measure_row(blocks.Row(2, 16, 4, cell, adds), 1, False)
        for cell, adds in [("se", True), ("se", False), ("dia", True), ("light", True)]
    ]
    for row in rows:
        row["ms"] |= {"forward/ours": 1.0, "forward/eager": 2.5, "both/ours": 2.0, "both/eager": 3.0}
    (_, forward), (_, both) = blocks.targets(rows)
    assert forward.met and not both.met  # 2.5 and 1.5 times
    assert re.search(r"se-B2-C16-HW4x4 .* 2.50x .* 1.50x", blocks.report(rows))


def test_a_network_whose_gradient_is_off_is_not_timed(monkeypatch):
    """This one refreshes all samples by the state of the first, as the published code does."""
    right = reference.refresh

    def slip(y, state, weights, **options):
        return right(y, tuple(s[:1].expand_as(s) for s in state), weights, **options)

    networks.check("dla_base_resnet20", ("ours", "copying"))
    monkeypatch.setattr(reference, "refresh", slip)
    with pytest.raises(SystemExit, match=r"dla_base_resnet20: the gradient is off by .* of that of copying"):
        networks.check("dla_base_resnet20", ("ours", "copying"))


def test_a_layout_of_blocks_is_set_in_the_environment_and_removed_again(monkeypatch):
    for variable in gpu_plans.VARIABLES:
        monkeypatch.setenv(variable, "7")
    gpu_plans.lay_out("4x3")
    assert [os.environ.get(variable) for variable in gpu_plans.VARIABLES] == ["4", "3", None]
    gpu_plans.lay_out(gpu_plans.PHASES)
    assert [os.environ.get(variable) for variable in gpu_plans.VARIABLES] == [None, None, "1"]
    gpu_plans.lay_out(gpu_plans.PLAN)
    assert not set(gpu_plans.VARIABLES) & set(os.environ)


def test_the_report_shows_the_best_layout_beside_the_plan():
    ms = {"copy": 0.1, "plan/forward": 0.4, "2x1/forward": 0.3, "8x1/forward": 0.5, "plan/backward": 0.7}
    ms |= {"2x1/backward": 0.8, "8x1/backward": 0.6}
    line = gpu_plans.report([{"name": "row", "ms": ms}]).splitlines()[-1].split()
    assert line == ["row", "100", "400", "300", "2x1", "700", "600", "8x1"]


def test_layouts_are_measured_on_a_stand_in(stand_in, monkeypatch):
    monkeypatch.setattr(gpu_plans, "WAYS", ("plan", "phases", "1x2"))
    row = gpu_plans.measure(gpu_inputs.REHEARSAL[1], stand_in, rounds=1)
    assert list(row["ms"]) == ["copy", *(f"{way}/{op}" for way in gpu_plans.WAYS for op in ("forward", "backward"))]


def test_a_step_of_whole_networks_is_measured_on_a_stand_in(stand_in, monkeypatch):
    monkeypatch.setattr(gpu_networks, "ATTENTIONS", ("", "dla_light_"))
    row = gpu_networks.measure(gpu_networks.REHEARSAL[0], stand_in, rounds=1, seconds=0.1)
    names = ["resnet20", "dla_light_resnet20", "dla_light_resnet20/reference"]
    assert list(row["launches"]) == names
    assert set(row["ms"]) == {f"{name}{graph}" for name in names for graph in ("", " graph")}
    assert all(name in gpu_networks.report([row]) for name in names)


def test_channels_that_the_sanitizers_run_divide_into_heads():
    for sizes, *_, C, _ in sanitized.SIZES:
        assert C % heads_of(C) == 0, sizes
