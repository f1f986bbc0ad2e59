"""These tests are of what is Triton's alone: its tiles, its launches, choosing by measurement, and when it serves."""

import ast
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dla_kernels as dla
from dla_kernels.backends import BACKENDS, INTERPRETED

from .calls import check_parity
from .cases import FEW_CELLS, MIDDLE, Shape, cell_name, inputs_of, options_of
from .conftest import COMPILED

pytestmark = pytest.mark.skipif(not BACKENDS["triton"].available, reason=f"triton: {BACKENDS['triton'].reason}")
if BACKENDS["triton"].available:
    import triton
    import triton.language as tl

    import triton_ops
    from triton_ops import launch, maps, tiles, tune, weight_gradients
    from triton_ops.recurrence import own_rows, own_samples

    TRITON = next(served for served in COMPILED if served.name == "triton")


@pytest.fixture
def launches(monkeypatch):
    """Return a list to which the name of each kernel launched is added."""
    seen = []

    def launch_and_note(kernel, *how, **args):
        seen.append(kernel.fn.__name__.removesuffix("_kernel"))
        real(kernel, *how, **args)

    real = launch.launch
    monkeypatch.setattr(launch, "launch", launch_and_note)
    return seen


# Forward, backward.
LAUNCHES = {
    "gap": (["gap"], []),
    "scan": (["scan"], ["scan_bwd", "weight_gradients"]),
    "refresh": (["refresh"], ["refresh_bwd", "weight_gradients"]),
    "rescale": (["rescale"], ["rescale_bwd"]),
    "layer_update": (
        ["gap", "layer_update", "rescale"],
        ["gate_gradient", "layer_update_bwd", "rescale", "weight_gradients"],
    ),
    "light_step": (
        ["gap", "light_step", "light_step_filters"],
        ["light_step_tap_sums", "light_step_bwd", "light_step_maps_bwd", "sums", "weight_gradients"],
    ),
}


@pytest.mark.parametrize("op", LAUNCHES)
def test_an_op_launches_what_the_page_says(launches, op):
    cell = FEW_CELLS[0]
    inputs = inputs_of(op, MIDDLE, cell, torch.float32, device=TRITON.device)
    maps_of = inputs["xs"] if "xs" in inputs else [inputs["y" if "y" in inputs else "x"]]
    leaves = [x.requires_grad_() for x in maps_of]
    out = getattr(dla, op)(**inputs, backend="triton", **options_of(op, cell))
    forward, backward = LAUNCHES[op]
    assert launches == forward
    first = out[0][0] if op == "layer_update" else out[0] if isinstance(out, (tuple, list)) else out
    torch.autograd.grad(first.sum(), leaves, allow_unused=True)
    assert launches == [*forward, *backward]


def test_layers_that_are_alike_take_one_kernel_whatever_their_number():
    """What a kernel is told of them: so many addresses, with room for a few more, and one size and stride of all."""

    def told(T):
        xs = maps.MapList([torch.ones(2, 8, 4, 4) for _ in range(T)])
        given, _ = maps.table(xs, xs, room=maps.ROOM)
        return [len(given.planes), *(len(words) for of in given.maps for words in of)]

    assert told(2) == told(7) == told(8) == [1, 8, 1, 1, 8, 1, 1]
    assert told(9) == [1, 16, 1, 1, 16, 1, 1]
    differ = maps.MapList([torch.ones(2, 8, n, n) for n in (1, 2, 3)])
    given, _ = maps.table(differ, room=maps.ROOM)
    assert [len(given.planes), *map(len, given.maps[0])] == [8, 8, 8, 8]


@pytest.mark.parametrize("past", [0, 2, 3])
def test_attend_launches_once_forward_and_twice_backward(launches, past):
    inputs = inputs_of("attend", MIDDLE, None, torch.float32, device=TRITON.device)
    leaves = [inputs[name].requires_grad_() for name in ("y", "q", "k")]
    coef, _, _ = dla.attend(*leaves, inputs["past"][:past], heads=1, backend="triton")
    torch.autograd.grad(coef.sum(), leaves)
    assert launches == ["attend", "attend_bwd", "sums"]


# ---- tiles ----


@pytest.mark.parametrize("C", [16, 64, 256, 2048])
@pytest.mark.parametrize("HW", [1, 49, 1024, 3136, 50176])
def test_no_tile_is_wider_than_what_a_program_takes(C, HW, monkeypatch):
    monkeypatch.delenv("DLA_KERNELS_TRITON_TILES", raising=False)
    for op in ("gap", "rescale", "mix", "depthwise", "light_step"):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            how = tiles.tiles(op, C, 0, HW, dtype)
            strips = [tiles.strip(how, side, piece, piece == 4) for side in (1, 7, 56, 300) for piece in (1, 4)]
            widest = max(how.planar[0], how.interleaved[0], *(strip.channels for strip in strips))
            assert widest <= how.piece


def test_in_place_each_channel_is_scaled_once():
    """One program does it, however many share a map: another would scale the channel again."""
    x = torch.ones(1, 128, 32, 32, device=TRITON.device).contiguous(memory_format=torch.channels_last)
    d = torch.arange(128.0, device=TRITON.device).view(1, 1, 128)
    with torch.no_grad():
        dla.rescale([x], d, inplace=True, backend="triton")
    assert torch.equal(x, d.view(1, 128, 1, 1).expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("C", [1, 16, 33, 64, 256, 1024, 2048])
@pytest.mark.parametrize("HW", [0, 1, 49, 64, 196, 3136])
def test_tiles_are_powers_of_two_and_of_bearable_size(C, HW, dtype):
    for op in ("gap", "rescale_bwd", "scan", "layer_update", "layer_update_bwd"):
        t = tiles.from_table(op, C, max(1, C // 4), HW, dtype)
        numbers = [t.samples, t.rows, t.columns, *t.product, *t.into, *t.out_of, t.channels, t.piece]
        assert all(n == tiles.power_of_two(n) for n in (*numbers, *t.planar, *t.interleaved))
        assert t.planar[0] * t.planar[1] == t.interleaved[0] * t.interleaved[1] <= 4096
        assert t.samples * max(math.prod(t.into), math.prod(t.out_of)) <= 16384
        assert not t.dots or min(t.rows, *t.product) >= 16  # what tl.dot wants


def test_tiles_do_not_depend_on_the_batch(monkeypatch):
    asked = []
    real = tiles.from_table
    monkeypatch.setattr(tiles, "from_table", lambda *question: (asked.append(question), real(*question))[1])
    for B in (1, 2, 7):
        shape, cell = Shape.parse(f"T2-B{B}-C6-R3-HW1x1"), FEW_CELLS[0]
        inputs = inputs_of("scan", shape, cell, torch.float32, device=TRITON.device)
        dla.scan(**inputs, cell=cell, backend="triton")
    assert len(set(asked)) == 1


# Tiles so small that every loop goes round more than once.
SMALL_TILES = "rows=16,columns=16,channels=16,product=16x16,into=16x16,out_of=16x16"
ABREAST = f"abreast=1,samples=16,{SMALL_TILES}"


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("given", ["", f"samples=2,{SMALL_TILES}"])
def test_other_tiles_give_the_same_results(monkeypatch, cell, given):
    """The tiles are those of the table, and small ones."""
    monkeypatch.setenv("DLA_KERNELS_TRITON_TILES", given)
    shape = Shape.parse("T3-B3-C37-R19-HW5x3,1x1")
    inputs = inputs_of("layer_update", shape, cell, torch.float32, device=TRITON.device)
    check_parity("layer_update", TRITON, inputs, shape.longest_sum, cell=cell)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
@pytest.mark.parametrize("op", ["scan", "refresh", "layer_update", "light_step"])
def test_parity_where_programs_share_out_every_phase(monkeypatch, op, cell, dtype):
    monkeypatch.setenv("DLA_KERNELS_TRITON_TILES", ABREAST)
    shape = Shape.parse("T3-B18-C37-R19-HW2x3")  # more samples and columns than a program takes, and than two do
    inputs = inputs_of(op, shape, cell, dtype, device=TRITON.device)
    check_parity(op, TRITON, inputs, shape.longest_sum, **options_of(op, cell))


def test_where_programs_share_out_every_phase_each_is_a_launch(launches, monkeypatch):
    monkeypatch.setenv("DLA_KERNELS_TRITON_TILES", ABREAST)
    cell, shape = FEW_CELLS[0], Shape.parse("T3-B2-C6-R3-HW2x2")
    inputs = inputs_of("layer_update", shape, cell, torch.float32, device=TRITON.device)
    leaves = [x.requires_grad_() for x in inputs["xs"]]
    out, _ = dla.layer_update(**inputs, cell=cell, backend="triton")
    # The start, what is hoisted, three of each step, and four of the refresh.
    assert launches == ["gap", *["forward_phase"] * (2 + 3 * shape.T + 4), "rescale"]
    launches.clear()
    torch.autograd.grad(out[0].sum(), leaves)
    # Begin and what is hoisted, seven of the refresh, its gates and three of each step, and the two that finish.
    phases = ["backward_phase"] * (2 + 7 + 2 + 3 * shape.T + 2)
    assert launches == ["gate_gradient", *phases, "rescale", "weight_gradients"]


@pytest.mark.parametrize("op", ["scan", "refresh", "layer_update", "light_step"])
def test_wide_cells_and_no_others_are_shared_out(op):
    for C, R in ((64, 16), (256, 64), (512, 32), (1024, 63), (1024, 64), (2048, 102), (511, 0), (512, 0)):
        expected = (C, R) in ((1024, 64), (2048, 102), (512, 0))
        assert tiles.from_table(op, C, R, 0, torch.float32).abreast == expected
        assert not tiles.from_table(op, C, R, 0, torch.float64).abreast
    assert not tiles.from_table("gap", 2048, 0, 49, torch.float32).abreast


@pytest.mark.parametrize("op", ["scan", "refresh", "layer_update"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parity_where_several_programs_share_weight_gradients(monkeypatch, op, dtype):
    monkeypatch.setattr(weight_gradients, "FEWEST_ROWS", 4)
    cell = FEW_CELLS[1]
    inputs = inputs_of(op, MIDDLE, cell, dtype, device=TRITON.device)
    check_parity(op, TRITON, inputs, MIDDLE.longest_sum, cell=cell)


def test_no_two_programs_share_scratch_rows():
    """The interpreter runs one program after the other, and would not mind."""

    @triton.jit
    def sign(of, samples, TILES: tl.constexpr):
        tl.store(of + own_rows(0, TILES), tl.program_id(0))
        tl.store(samples + own_samples(0, TILES), tl.program_id(0))

    how = tiles.tiles("scan", 64, 16, 0, torch.float32)._replace(rows=16, samples=4)
    of, samples = torch.full((2, 3 * 16), -1, device=TRITON.device)
    sign[(3,)](of, samples, TILES=how)
    owners = torch.arange(3, device=TRITON.device)[:, None]
    assert torch.equal(of.view(3, 16), owners.expand(3, 16))
    assert torch.equal(samples.view(3, 16)[:, :4], owners.expand(3, 4))


@pytest.mark.parametrize(
    ("x", "stride"),
    [
        (torch.ones(2, 3, 4, 5), 1),
        (torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), 3),
        (torch.ones(2, 3, 4, 5)[..., :4], 0),
        (torch.ones(2, 3, 4, 5)[..., :1], 5),
        (torch.ones(2, 3, 4, 5)[:, :, :1, ::2], 2),
        (torch.ones(2, 3, 4, 5)[:, :, :1, :1], 1),
    ],
)
def test_pixels_that_lie_evenly_apart_are_walked_as_one_axis(x, stride):
    assert maps.pixel_stride(x) == stride


# ---- choosing by measurement ----


@pytest.fixture
def measured(monkeypatch):
    """Switch tuning on, declare one candidate the fastest, and yield the list of what is measured."""
    calls = []

    def milliseconds(call):
        calls.append(dict(tiles.trial))
        return 1.0 if tiles.trial == {"samples": 2} else 2.0

    monkeypatch.setattr(tune, "milliseconds", milliseconds)
    triton_ops.autotune()
    yield calls
    triton_ops.autotune(False)
    tiles.chosen.clear()


def test_the_fastest_candidate_serves_every_batch(measured, monkeypatch):
    monkeypatch.setenv("DLA_KERNELS_TRITON_TILES", "")
    cell = FEW_CELLS[0]
    for B in (3, 1, 5):
        inputs = inputs_of("scan", Shape.parse(f"T2-B{B}-C6-R3-HW1x1"), cell, torch.float32, device=TRITON.device)
        with torch.no_grad():
            dla.scan(**inputs, cell=cell, backend="triton")
    assert measured == list(tune.CANDIDATES)
    assert tiles.tiles("scan", 6, 3, 0, torch.float32).samples == 2
    assert tiles.tiles("scan", 8, 3, 0, torch.float32).samples == 1


def test_tuning_one_launch_leaves_what_is_chosen_for_another(measured, monkeypatch):
    """Maps of another size ask for new tiles of their own launches; the cell's have been chosen."""
    monkeypatch.setenv("DLA_KERNELS_TRITON_TILES", "")
    cell, asked, real = FEW_CELLS[0], [], launch.launch

    def launch_and_note(kernel, programs, like, how, **args):
        asked.append((kernel, how))
        real(kernel, programs, like, how, **args)

    monkeypatch.setattr(launch, "launch", launch_and_note)
    for size in ("2x2", "3x3"):
        asked.clear()
        shape = Shape.parse(f"T2-B2-C6-R3-HW{size}")
        inputs = inputs_of("layer_update", shape, cell, torch.float32, device=TRITON.device)
        with torch.no_grad():
            dla.layer_update(**inputs, cell=cell, backend="triton")
    of_cell = {how.samples for kernel, how in asked if kernel.fn.__name__ == "layer_update_kernel"}
    assert of_cell == {2}, "while the maps' launches were measured too"
    assert len(measured) == 2 * len(tune.CANDIDATES)


def test_tuning_never_measures_an_op_that_writes_in_place(measured):
    inputs = inputs_of("rescale", MIDDLE, None, torch.float32, device=TRITON.device)
    with torch.no_grad():
        dla.rescale(**inputs, inplace=True, backend="triton")
    assert measured == []


# ---- what Triton keeps of earlier runs ----

KEYS = """
from triton.compiler import ASTSource
from triton_ops.cells import RULES
from triton_ops.refresh import refresh_bwd_kernel

def key(cell):
    return ASTSource(refresh_bwd_kernel, {}, {"CELL": cell}).hash()

assert len(set(map(key, RULES.values()))) == len(RULES)
before, lstm = key(RULES["lstm"]), RULES["lstm"]
for function in (lstm.feed, lstm.step, lstm.output, lstm.step_bwd, lstm.output_bwd, lstm.act.value, lstm.act.grad):
    real, function.hash = function.cache_key, "another source"
    assert key(lstm) != before, function
    function.hash = real
assert key(lstm) == before
"""


def test_another_source_of_a_cell_is_compiled_anew():
    """Triton's cache lives longer than a version of this package."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", KEYS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- when it serves ----


@pytest.mark.skipif(not INTERPRETED, reason="this machine has a GPU")
def test_without_gpu_and_interpreter_triton_says_why_it_is_not_available():
    code = "import torch, dla_kernels as dla; dla.gap([torch.ones(1, 1, 1, 1)], backend='triton')"
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "'triton' is not available here: torch sees no GPU" in done.stderr
    assert "TRITON_INTERPRET=1" in done.stderr


def test_unasked_the_interpreter_never_serves():
    from dla_kernels.backends import select

    assert select(None, torch.device("cpu")) == "cpu"


def test_tf32_is_used_only_where_the_user_allows_it():
    assert launch.precision() == "ieee"
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert launch.precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_tiles_are_taken_as_every_version_of_triton_takes_them():
    """Triton 3.6 refuses a field of TILES or STRIP in a shape, and one that is a tuple as an argument, unless it has
    been given a name of its own; later versions, and the interpreter, do not mind."""
    table = tiles.tiles("gap", 64, 0, 64, torch.float32)._asdict()
    tuples = {name for name, value in table.items() if isinstance(value, tuple)}
    assert tuples
    for path in sorted(Path(triton_ops.__file__).parent.glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            fields = [*node.args, *(k.value for k in node.keywords)] if isinstance(node, ast.Call) else []
            refused = {f.attr for f in fields if is_field(f)} & tuples
            if isinstance(node, ast.List):
                refused |= {item.attr for item in node.elts if is_field(item)}
            assert not refused, f"{path.name}, line {node.lineno}: give {min(refused)} a name, a tl.constexpr"


def is_field(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("TILES", "STRIP")


def test_no_text_goes_from_kernel_to_kernel_as_triton_3_6_takes_none():
    """What the host gives, such as PROJECTION, may be passed on; a text that is written there has no type."""

    def is_text(node):
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    seen = 0
    for path in sorted(Path(triton_ops.__file__).parent.glob("**/*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            jitted = isinstance(function, ast.FunctionDef) and "triton.jit" in map(
                ast.unparse, (getattr(d, "func", d) for d in function.decorator_list)
            )
            if not jitted:
                continue
            seen += 1
            given = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and not ast.unparse(call.func).startswith(("tl.", "float")):
                    given += [*call.args, *(k.value for k in call.keywords)]
                if isinstance(call, ast.AnnAssign):
                    given += [node for node in ast.walk(call.value) if not isinstance(node, ast.Compare)]
            compared = {id(node) for c in ast.walk(function) if isinstance(c, ast.Compare) for node in ast.walk(c)}
            texts = [node.value for node in given if is_text(node) and id(node) not in compared]
            assert texts == [], f"{path.name}: {function.name}"
    assert seen > 50
