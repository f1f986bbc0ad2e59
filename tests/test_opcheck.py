"""Every operator passes torch.library's own checks: schema, fake results, tracing with dynamic shapes."""

import re
from collections import defaultdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import dla_kernels as dla
from dla_kernels.backends import BACKENDS, SIMT
from dla_kernels.verify import functions, make_cases, make_plain_cases, outputs_and_gradients

pytest.importorskip("expecttest")  # opcheck imports it
from .cases import FEW_CELLS, MIDDLE, OPS_WITH_CELL, case_name, inputs_of, lay_out, options_of
from .interpreter import some
from .test_house import QUESTIONS, SCHEMAS

NAMESPACES = {"cpu": "dla", "cuda": "dla_simt" if SIMT else "dla", "triton": "dla_triton"}
OPERATORS = [name for name in SCHEMAS if name not in QUESTIONS]
WITH_MAPS = [op for op in OPERATORS if not op.startswith(("scan", "refresh", "attend"))]
# One map has one layout, and maps are written in place only where NCHW or channels_last.
NEVER_MIXED = ("depthwise", "rescale_", "layer_update_")
SIZES, C = ((5, 3), (4, 4), (1, 1)), 17


def op_of(operator):
    return re.sub("(_bwd|_)$", "", operator)


class Recorder(TorchDispatchMode):
    """The recorder keeps what the operators of a backend are called with, by name."""

    def __init__(self, backend):
        super().__init__()
        self.namespace, self.calls = NAMESPACES[backend.name], defaultdict(list)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == self.namespace:
            self.calls[function._opname].append(tree_map_only(torch.Tensor, torch.Tensor.detach, args))
        return function(*args, **(kwargs or {}))


def laid_out(tensors, layout):
    """Return the tensors with their maps in a layout; filters are no maps."""
    at = [i for i, x in enumerate(tensors) if x.dim() == 4 and x.shape[1] == C]
    again = dict(zip(at, lay_out([tensors[i] for i in at], layout)))
    return [again.get(i, x) for i, x in enumerate(tensors)]


def calls_of(operator, backend, *, cell=None, dtype=torch.float32, layout="nchw"):
    """Return arguments of the operator as the public functions call it: of each way in which its lists can be filled
    the first, and those with most tensors last."""
    op, cell = op_of(operator), cell or FEW_CELLS[0]
    torch.manual_seed(0)
    with Recorder(backend) as recorder:
        if operator.endswith("_"):
            inputs = inputs_of(op, MIDDLE, cell, dtype, layout=layout, device=backend.device)
            with torch.no_grad():
                getattr(dla, op)(**inputs, inplace=True, backend=backend.name, **options_of(op, cell))
        else:
            makers = (make_plain_cases(SIZES, 3, C, backend.device), make_cases(cell, SIZES, 3, C, 5, backend.device))
            # A step is made of the ops without a cell, and calls them in more ways.
            found = (op,) if op in OPS_WITH_CELL else (op, "base_step")
            for case in [case for cases in makers for case in cases if case.op in found]:
                tensors = laid_out([x.to(dtype) for x in case.tensors], layout)
                outputs_and_gradients(case, functions(backend.name), tensors)
    ways = {}
    for args in recorder.calls[operator]:
        ways.setdefault(tuple(len(x) if isinstance(x, list) else None for x in args), args)
    return sorted(ways.values(), key=lambda args: len(tree_leaves(args)))


@pytest.fixture
def operators(backend):
    return BACKENDS[backend.name].ops


OPERATOR_AND_CELL = [(op, cell) for op in OPERATORS for cell in (FEW_CELLS if op_of(op) in OPS_WITH_CELL else [None])]
OPERATOR_AND_LAYOUT = [(op, "channels_last") for op in WITH_MAPS]
OPERATOR_AND_LAYOUT += [(op, "mixed") for op in WITH_MAPS if op not in NEVER_MIXED]


@pytest.mark.parametrize(("op", "cell"), OPERATOR_AND_CELL, ids=case_name)
def test_every_operator_passes_opcheck(backend, operators, op, cell):
    for args in some(backend, calls_of(op, backend, cell=cell), 1):
        torch.library.opcheck(getattr(operators, op).default, args)


@pytest.mark.parametrize(("op", "layout"), OPERATOR_AND_LAYOUT)
def test_every_operator_passes_opcheck_in_other_layouts(backend, operators, op, layout):
    """A fake that lays its results out otherwise than the kernel means wrong memory under torch.compile."""
    *_, args = calls_of(op, backend, dtype=torch.bfloat16, layout=layout)
    torch.library.opcheck(getattr(operators, op).default, args)


@pytest.mark.parametrize(
    "layout", ["nchw", "channels_last", "sliced", "transposed", "batch_inside", "shared_by_samples"]
)
@pytest.mark.parametrize("op", [op for op in WITH_MAPS if not op.endswith("_")])
def test_fake_strides_are_the_real_ones(backend, operators, op, layout):
    for args in some(backend, calls_of(op, backend, layout=layout), 1):
        real = tree_leaves(getattr(operators, op)(*args))
        with torch._subclasses.FakeTensorMode() as mode:
            faked = tree_map_only(torch.Tensor, mode.from_tensor, args)
            fake = tree_leaves(getattr(operators, op)(*faked))
        assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]


def test_every_operator_is_checked(backend):
    split = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    names = {name for space, name in split if space == NAMESPACES[backend.name]}
    questions = {"launches", *QUESTIONS} if backend.name == "cuda" else set(QUESTIONS)
    assert names - questions == {*OPERATORS}
