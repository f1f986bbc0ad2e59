"""Every plan of csrc/cuda/planner.h can run, and those of the design's rows use the chip as the design says."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dla_kernels import __main__ as cli
from dla_kernels.cuda_plan import Device as AnyDevice
from dla_kernels.cuda_plan import cuda_plan

from .cuda_plans import BUFFERS, PLAN_H, Device, Plans, Problem

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    plans = Plans(tmp_path_factory.mktemp("plan"))
    yield plans
    plans.close()


def test_buffers_are_those_of_the_header():
    listed = PLAN_H.read_text().partition("enum Buffer {")[2].partition("kNumBuffers")[0]
    assert [line.split()[0] for line in listed.strip().splitlines()] == [f"k{name}," for name in BUFFERS]


# ---- what holds for every plan ----

H200 = Device(132, 232448, 233472, 50 << 20, 8, 256)
REAL = {
    "h200": H200,
    "a100": Device(108, 166912, 167936, 40 << 20, 1, 256),
    "rtx 4090": Device(128, 101376, 102400, 72 << 20, 1, 256),
    "t4": Device(40, 65536, 65536, 4 << 20, 1, 256),
    "h200, 1/7 of it": Device(16, 232448, 233472, 7 << 20, 8, 256),
}


@st.composite
def devices(draw):
    if draw(st.booleans()):
        return REAL[draw(st.sampled_from(sorted(REAL)))]
    shared = draw(st.integers(0, 240_000))
    return Device(
        draw(st.integers(1, 200)),
        shared,
        draw(st.integers(1, 3)) * (shared + 1024),
        draw(st.integers(0, 1 << 27)),
        draw(st.integers(1, 16)),
        32 * draw(st.integers(1, 16)),
    )


@st.composite
def problems(draw):
    projection = draw(st.sampled_from(["joint", "split", "dense"]))
    C = draw(st.integers(1, 4100) | st.integers(1, 80))
    pixels = draw(st.just(0) | st.integers(1, 10_000))
    attention = draw(st.booleans())
    T = draw(st.integers(1, 2) if attention else st.integers(1, 256) | st.integers(1, 24))
    no_cell = attention and projection == "joint" and draw(st.booleans())
    accumulate_bytes = draw(st.sampled_from([4, 8]))
    return Problem(
        backward=draw(st.booleans()),
        projection=projection,
        NG=0 if no_cell else draw(st.sampled_from([1, 3, 4])),
        T=T,
        B=draw(st.integers(0, 2000) | st.integers(1, 20)),
        C=C,
        R=0 if projection == "dense" or no_cell else draw(st.integers(1, 1024) | st.integers(1, 40)),
        sample_bytes=T * C * pixels * draw(st.sampled_from([2, 4])),
        accumulate_bytes=accumulate_bytes,
        attention=attention,
    )


# What hot steps reach in shared memory alone, forward and backward.
HOT = ({"U", "H", "C", "Bias"}, {"DH", "DC", "Gates", "UScan", "DsScan"})


def needed(problem, plan):
    """Return the elements of every buffer that the kernels use, from the shapes in plan.h's comments."""
    p, nb, cs, R = problem, plan["samples"], plan["channels"], problem.R
    low, back, joint = p.projection != "dense", p.backward, p.projection == "joint"
    rows, gates = p.T * nb, p.NG * cs
    chunk = plan["chunk"] * nb
    sizes = {
        "H": nb * cs,
        "C": nb * cs,
        "Scratch": (9 if p.attention else 8) * plan["threads"],
        "LastProduct": nb * (R if low else gates),
        "Gates": (rows if back else chunk) * gates,
        "Bias": gates,
        "D": (rows if back else chunk) * cs,
        "Y": rows * cs,
    }
    if p.attention:
        sizes |= dict.fromkeys(["Gate", "Middle"] if back else ["Gate"], nb * cs)
    if low:
        fours, odd = -(-R // 4) * 4, {n: (-(-n // 4) | 1) * 4 for n in (cs, R)}
        sizes |= {"Exchange": 2 * chunk * R, "U": chunk * fours, "W1h": R * odd[cs], "W2h": gates * odd[R]}
    if plan["hot"] and plan["group"] > 1:
        sizes |= {"Letters": 2 * plan["group"] * nb * R, "Letterboxes": 16 // p.accumulate_bytes}
    sizes |= {"P": rows * R} if joint else {"Q": rows * gates}
    if back:
        sizes |= dict.fromkeys(["DH", "DC"], nb * cs) | dict.fromkeys(["DD", "DY", "HBefore"], rows * cs)
        sizes["LastSum"] = sizes["LastProduct"]
        if low:
            sizes |= dict.fromkeys(["UScan", "DsScan", "URefresh", "DP"], rows * R)
        if p.projection == "split":
            sizes["UY"] = rows * R
        if not joint:
            sizes["DQ"] = rows * gates
    return {name: n for name, n in sizes.items() if n > 0}


def check_places(problem, device, plan):
    sizes = {name: n * problem.accumulate_bytes for name, n in needed(problem, plan).items()}
    copies = {"W1h", "W2h"}
    assert plan["place"].keys() <= sizes.keys()
    assert sizes.keys() - copies <= plan["place"].keys()
    assert len(copies & plan["place"].keys()) in (0, 2), "both weights are copied, or none"
    shared, workspace = [], []
    for name, place in plan["place"].items():
        begin = place if place >= 0 else -1 - place
        assert begin % 16 == 0, name
        assert name not in copies or place >= 0, "copies of weights are never in the workspace"
        (shared if place >= 0 else workspace).append((begin, begin + sizes[name], name))
    for memory, limit in ((shared, plan["shared"]), (workspace, plan["workspace"])):
        assert all(end <= limit for _, end, _ in memory)
        for (_, end, name), (begin, _, other) in combinations(sorted(memory), 2):
            assert end <= begin, f"{name} and {other} overlap"
    assert plan["workspace"] % 16 == 0  # where the next block's begins
    if problem.R > 0 and plan["group"] > 1:
        assert plan["place"]["Exchange"] >= 0, "other blocks must reach it"
    if plan["hot"]:
        hot = HOT[problem.backward] | {"Letters", "Letterboxes"}
        assert copies <= plan["place"].keys()
        assert all(place >= 0 for name, place in plan["place"].items() if name in hot)
        assert plan["channels"] * plan["group"] == problem.C, "in hot steps all blocks are alike"


def check_plan(problem, device, plan):
    group, samples = plan["group"], plan["samples"]
    assert group in (1, 2, 4, 8)
    assert group <= device.largest_cluster
    assert group == 1 or problem.projection != "dense"
    assert plan["channels"] % 8 == 0
    assert plan["channels"] * group >= problem.C
    assert 1 <= samples <= min(8, max(problem.B, 1))
    assert 1 <= plan["chunk"] <= problem.T
    assert plan["in_flight"] >= 1
    assert (plan["in_flight"] - 1) * samples < max(problem.B, 1), "a group without a tile"
    assert plan["threads"] == device.threads
    assert 0 <= plan["shared"] <= device.shared_per_block
    assert plan["shared"] + 1024 <= max(device.shared_per_processor, 1024)
    expected = "weights-bound" if samples > 1 else "on-chip" if group > 1 else "portable"
    assert plan["path"] == expected
    check_places(problem, device, plan)


many = settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(problems(), devices(), st.sampled_from([1 << 30, 8, 4, 2, 1]))
def test_every_plan_is_one_that_can_run(plans, problem, device, largest_group):
    plan = plans(problem, device, largest_group)
    check_plan(problem, device, plan)
    assert plan["group"] <= largest_group


def blocks_per_tile(plans, problem, device, batches):
    """Return what decides the order of sums, with a batch of each: blocks that share a tile, if weights are copied, if
    steps are hot."""
    found = {B: plans(problem._replace(B=B), device) for B in batches}
    return {(plan["group"], "W2h" in plan["place"], plan["hot"]): B for B, plan in found.items()}


@many
@given(problems(), devices(), st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_the_order_of_sums_does_not_depend_on_the_batch(plans, problem, device, batches):
    groups = blocks_per_tile(plans, problem, device, [1, *batches, problem.B])
    assert len(groups) == 1, f"{problem} on {device}: blocks per tile and B are {groups}"


@pytest.mark.parametrize(
    "problem",
    [
        Problem(False, "joint", 3, 28, 669, 99, 134, 0),
        Problem(True, "split", 4, 4, 292, 1907, 8, 0),
        Problem(False, "joint", 3, 31, 1399, 95, 186, 0),
        Problem(True, "split", 4, 28, 1803, 42, 184, 0),
        Problem(True, "split", 3, 38, 226, 710, 59, 0),
        Problem(False, "joint", 4, 26, 899, 682, 43, 0),
    ],
    ids=lambda p: f"{p.projection}-T{p.T}-B{p.B}-C{p.C}-R{p.R}",
)
def test_sharing_a_tile_to_make_room_for_weights_keeps_the_order_of_sums(plans, problem):
    """With more samples fewer layers are exchanged at once: that takes less memory, and the weights just fit."""
    groups = blocks_per_tile(plans, problem, H200, [1, problem.B])
    assert len(groups) == 1, f"blocks per tile and B are {groups}"


# ---- the rows of section 7 of the design on an H200 ----

# T, B, C, pixels of a map, R
CIFAR = {
    "CIFAR C64": (12, 128, 64, 1024, 16),
    "CIFAR C128": (12, 128, 128, 256, 32),
    "CIFAR C256": (12, 128, 256, 64, 64),
}
IMAGENET = {
    "C256": (3, 256, 256, 3136, 16),
    "C512": (4, 256, 512, 784, 32),
    "C1024 T6": (6, 256, 1024, 196, 64),
    "C1024 T23": (23, 256, 1024, 196, 64),
    "C2048": (3, 256, 2048, 49, 128),
}
BOTH_PASSES = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
BOTH_DSUS = pytest.mark.parametrize("projection", ["joint", "split"])


def plan_of_row(plans, name, backward, projection="joint", itemsize=2):
    T, B, C, HW, R = (CIFAR | IMAGENET)[name]
    problem = Problem(backward, projection, 3, T, B, C, R, T * C * HW * itemsize * (2 if backward else 1))
    plan = plans(problem, H200)
    check_plan(problem, H200, plan)
    return problem, plan


H100 = Device(132, 232448, 233472, 52428800, 8, 256)
MEASURED = json.loads((Path(__file__).parent.parent / "bench/results/h100-80gb-hbm3/plans.json").read_text())


@BOTH_PASSES
@pytest.mark.parametrize("row", MEASURED["rows"], ids=lambda row: row["name"])
def test_the_plan_is_nearly_as_fast_as_the_best_layout_measured(plans, row, backward):
    """The layouts of blocks and samples are those that bench.targets.gpu_plans tried on an H100, before any step was
    hot: as none is where nothing is scanned."""
    T, B, C, H, W, r = map(int, re.fullmatch(r"T(\d+)-B(\d+)-C(\d+)-HW(\d+)x(\d+)-r(\d+)", row["name"]).groups())
    plan = plans(Problem(backward, "joint", 3, T, B, C, C // r, T * C * H * W * 2 * (1 + backward), scans=False), H100)
    op = "backward" if backward else "forward"
    times = {way: time for way, time in row["ms"].items() if re.fullmatch(rf"\dx\d/{op}", way)}
    assert times[f"{plan['group']}x{plan['samples']}/{op}"] <= 1.1 * min(times.values())


@BOTH_PASSES
@BOTH_DSUS
def test_the_widest_row_shares_its_weights(plans, projection, backward):
    _, plan = plan_of_row(plans, "C2048", backward, projection)
    assert plan["path"] in ("weights-bound", "on-chip"), plan


@BOTH_DSUS
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", ["CIFAR C64", "CIFAR C128"])
def test_cifar_forward_needs_no_workspace(plans, name, itemsize, projection):
    _, plan = plan_of_row(plans, name, False, projection, itemsize)
    assert plan["workspace"] == 0, plan


@BOTH_PASSES
@pytest.mark.parametrize("name", CIFAR | IMAGENET)
def test_without_clusters_every_tile_has_one_block(plans, name, backward):
    T, B, C, HW, R = (CIFAR | IMAGENET)[name]
    problem = Problem(backward, "joint", 3, T, B, C, R, T * C * HW * 2)
    for device, limit in ((REAL["a100"], 1 << 30), (H200, 1)):
        plan = plans(problem, device, limit)
        check_plan(problem, device, plan)
        assert plan["group"] == 1


@BOTH_PASSES
def test_the_operator_plans_as_the_header_does_for_a_device_whose_every_fact_decides(plans, backward):
    device = Device(20, 60_000, 233_472, 4 << 20, 4, 128)
    for name in CIFAR | IMAGENET:
        T, B, C, HW, R = (CIFAR | IMAGENET)[name]
        problem = Problem(backward, "joint", 3, T, B, C, R, (1 + backward) * T * C * HW * 2)
        plan = plans(problem, device)
        ours = cuda_plan(T, B, C, HW, R, backward=backward, device=AnyDevice(*device))
        assert (ours["blocks_per_tile"], ours["samples_per_tile"]) == (plan["group"], plan["samples"]), name
        assert (ours["tiles_in_flight"], ours["threads"]) == (plan["in_flight"], plan["threads"]), name
        assert (ours["shared_bytes"], ours["workspace_bytes"]) == (plan["shared"], plan["workspace"]), name


@pytest.mark.parametrize("option", [("-T", "0"), ("-C", "-5"), ("-B", "many"), ("-T", "257")])
def test_the_plan_command_refuses_sizes_that_no_stage_has(option, capsys):
    try:
        status = cli.main(["plan", *option])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert "expected" in capsys.readouterr().err
