"""torch.library's own checks of every operator: schema, fake results, tracing with dynamic shapes."""

from dataclasses import replace

import pytest
import torch

from dla_kernels.backends import BACKENDS, SIMT

pytest.importorskip("expecttest")  # opcheck imports it
from .cases import FEW_CELLS, MIDDLE, case_name, filters, maps, rows, state, weights


def arguments(op, cell, dtype, layout, device):
    """Of ``torch.ops.dla.<op>``, as csrc/bindings.cpp declares them."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    full = "h" if cell.kind == "rnn" else "hc"
    saved = len(cell.state_names)

    def xs():
        return maps(MIDDLE, dtype, layout, device)

    def y():
        return rows(MIDDLE, accumulate, device)

    def states():
        return [y() for _ in range(saved)]

    w = list(weights(cell, MIDDLE, accumulate, device))
    start = list(state(MIDDLE, full, accumulate, device))
    args = {
        "gap": lambda: (xs(),),
        "scan": lambda: (y(), w, start, cell.rule),
        "scan_bwd": lambda: (states(), y(), w, start, states(), cell.rule),
        "refresh": lambda: (y(), start, w, cell.rule),
        "refresh_bwd": lambda: (y(), y(), start, w, cell.rule),
        "rescale": lambda: (xs(), y()),
        "rescale_": lambda: (xs(), y()),
        "rescale_bwd": lambda: (xs(), xs(), y()),
        "layer_update": lambda: (xs(), w, start, cell.rule),
        "layer_update_": lambda: (xs(), states(), w, start, cell.rule),
        "layer_update_bwd": lambda: (xs(), states(), xs(), w, start, y(), states(), cell.rule),
    } | attention_arguments(cell, dtype, accumulate, layout, device, w, start)
    return args[op]()


def attention_arguments(cell, dtype, accumulate, layout, device, w, start):
    shape = replace(MIDDLE, sizes=MIDDLE.sizes[:1])
    B, C, T = shape.B, shape.C, shape.T

    def two():
        return maps(replace(shape, T=2), dtype, layout, device)

    def row(*of):
        return torch.randn(*of).to(device, accumulate)

    q, k, v = filters(shape, accumulate, device)
    f, norm = [q, k, v, row(C), row(C, 1, 3, 3)], (row(2, C).abs(), row(C), row(C), [row(B).abs()])
    new = [row(B, C) for _ in cell.state_names]
    past = [row(n * T, B, C) for n in (1, 1, 2)]
    more = [row(T + 1, B, C) for _ in range(3)]
    return {
        "light_step": lambda: (two(), f, w, start, cell.rule, 1, True),
        "light_step_bwd": lambda: (two()[0], new, two(), f, w, start, row(2, B, C), new, cell.rule, 1),
        "depthwise": lambda: (two()[0], v),
        "depthwise_bwd": lambda: (two()[1], row(2, B, C), two()[0], v),
        "attend": lambda: (row(B, C), q, k, past, 1),
        "attend_bwd": lambda: (*more, row(B, C), q, k, past, 1),
        "mix": lambda: (maps(shape, dtype, layout, device), row(T, B, C), True),
        "mix_bwd": lambda: (
            two()[1],
            maps(shape, dtype, layout, device),
            maps(shape, dtype, layout, device),
            row(T, B, C),
        ),
        "norm_add": lambda: (*two(), *norm, 1e-5, True),
        "norm_add_bwd": lambda: (*two(), *norm, 1e-5, True, True),
    }


OF_A_CELL = ("scan", "refresh", "layer_update", "light_step")
FORWARD = ("gap", "scan", "refresh", "rescale", "layer_update", "light_step", "depthwise", "attend", "mix", "norm_add")
OPERATORS = (*FORWARD, *(f"{op}_bwd" for op in FORWARD[1:]), "rescale_", "layer_update_")
WITH_MAPS = [op for op in OPERATORS if not op.startswith(("scan", "refresh", "attend"))]
OPERATOR_AND_CELL = [(op, cell) for op in OPERATORS for cell in (FEW_CELLS if op.startswith(OF_A_CELL) else [None])]
# One map has one layout, and maps are written in place only where NCHW or channels_last.
NEVER_MIXED = ("depthwise", "rescale_", "layer_update_")
OPERATOR_AND_LAYOUT = [(op, "channels_last") for op in WITH_MAPS]
OPERATOR_AND_LAYOUT += [(op, "mixed") for op in WITH_MAPS if op not in NEVER_MIXED]
NAMESPACES = {"cpu": "dla", "cuda": "dla_simt" if SIMT else "dla", "triton": "dla_triton"}
# Those that take no tensors have nothing to check.
QUESTIONS = {"dla": {"cpu_isa", "cuda_plan"}, "dla_simt": {"cpu_isa", "cuda_plan", "launches"}, "dla_triton": set()}


@pytest.fixture
def operators(backend):
    return BACKENDS[backend.name].ops


@pytest.mark.parametrize(("op", "cell"), OPERATOR_AND_CELL, ids=case_name)
def test_every_operator_passes_opcheck(backend, operators, op, cell):
    args = arguments(op, cell or FEW_CELLS[0], torch.float32, "nchw", backend.device)
    torch.library.opcheck(getattr(operators, op).default, args)


@pytest.mark.parametrize(("op", "layout"), OPERATOR_AND_LAYOUT)
def test_every_operator_passes_opcheck_in_other_layouts(backend, operators, op, layout):
    """A fake that lays its results out otherwise than the kernel is wrong memory under torch.compile."""
    args = arguments(op, FEW_CELLS[0], torch.bfloat16, layout, backend.device)
    torch.library.opcheck(getattr(operators, op).default, args)


@pytest.mark.parametrize(
    "layout", ["nchw", "channels_last", "sliced", "transposed", "batch_inside", "shared_by_samples"]
)
@pytest.mark.parametrize("op", [op for op in WITH_MAPS if not op.endswith("_")])
def test_fake_strides_are_the_real_ones(backend, operators, op, layout):
    args = arguments(op, FEW_CELLS[0], torch.float32, layout, backend.device)
    real = torch.utils._pytree.tree_leaves(getattr(operators, op)(*args))
    with torch._subclasses.FakeTensorMode() as mode:
        faked = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args)
        fake = torch.utils._pytree.tree_leaves(getattr(operators, op)(*faked))
    assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]


def test_every_operator_is_checked(backend, operators):
    split = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    names = {name for space, name in split if space == NAMESPACES[backend.name]}
    assert names == {*OPERATORS} | QUESTIONS[NAMESPACES[backend.name]]
