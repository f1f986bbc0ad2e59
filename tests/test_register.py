"""A cell that is registered in plain PyTorch serves wherever a compiled one does, by the reference."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

import dla_kernels as dla
from dla_kernels import cells, nn
from dla_kernels.reference import cells as rules

from .cases import MIDDLE, OPS_WITH_CELL, SMALL, inputs_of, options_of
from .tolerances import assert_same_bits


def minimal(a, h, c):
    f = torch.sigmoid(a[0])
    c = f * c + (1 - f) * torch.tanh(a[1])
    return c, c


def register_minimal(**other):
    how = {"gates": 2, "states": ("c",), "step": minimal, "output": lambda h, c: c}
    return dla.register_cell("minimal", **how | other)


def tensors_in(results):
    return [x for x in tree_leaves(results) if x is not None]


# A cell like each compiled one of another form of state, and what the two are called.
TWINS = {
    "rnn": {"gates": 1, "states": ("h",), "step": rules.rnn, "output": rules.read_h, "projection": "dense"},
    "lstm": {
        "gates": 4,
        "states": ("h", "c"),
        "step": rules.RULES["lstm"].step,
        "output": rules.read_h,
        "projection": "dense",
    },
    "dsu-paper": {
        "gates": 3,
        "states": ("c",),
        "step": rules.RULES["dsu-sigmoid-context"].step,
        "output": lambda h, c: c,
        "feed": torch.sigmoid,
    },
}


@pytest.mark.parametrize("op", OPS_WITH_CELL)
@pytest.mark.parametrize("kind", TWINS)
def test_a_registered_cell_computes_what_the_compiled_one_does(kind, op):
    twin, cell = dla.register_cell("twin", **TWINS[kind]), dla.Cell(kind)
    for form in ("default", None) if op != "refresh" else ("default",):
        inputs = inputs_of(op, MIDDLE, cell, torch.float32, form=form)
        expected = getattr(dla, op)(**inputs, **options_of(op, cell), backend="reference")
        found = getattr(dla, op)(**inputs, **options_of(op, twin))
        for ours, theirs in zip(tensors_in(found), tensors_in(expected), strict=True):
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("projection", ["joint", "split", "dense"])
def test_gradients_of_a_registered_cell(projection):
    cell = register_minimal(projection=projection)
    assert cell.projection == projection
    inputs = inputs_of("scan", SMALL, cell, torch.float64)
    leaves = [x.requires_grad_() for x in (inputs["y"], *inputs["weights"])]
    assert torch.autograd.gradcheck(
        lambda y, *w: dla.scan(y, type(inputs["weights"])(*w), cell="minimal"), leaves, fast_mode=True
    )


@pytest.mark.parametrize("attention", ["dia", "dla_light", "dla_base"])
def test_networks_and_modules_take_a_registered_cell(attention):
    register_minimal()
    net = dla.create_model(f"{attention}_resnet20", cell="minimal")
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    of_cell = [p for name, p in net.named_parameters() if ".cell." in name]
    assert of_cell and all(p.grad.abs().sum() > 0 for p in of_cell if p.dim() == 2)
    (c,) = nn.make_cell("minimal", 8)(torch.randn(2, 8))
    assert torch.equal(nn.CellModule(8, "minimal").output((c,)), c)
    assert len(nn.LayerUpdate(nn.CellModule(8, "minimal"))([torch.randn(2, 8, 4, 4)] * 3)) == 3


def test_a_registered_cell_compiles():
    torch._dynamo.reset()
    net = nn.ContextScan(nn.make_cell(register_minimal(), 8))
    y = torch.randn(3, 2, 8)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y), net(y))


@pytest.mark.parametrize("op", OPS_WITH_CELL)
def test_kernels_asked_for_by_name_are_refused(op):
    cell = register_minimal()
    with pytest.raises(
        ValueError, match=r"backend: expected None or 'reference' with the cell 'minimal', .*, got 'cpu'"
    ):
        getattr(dla, op)(**inputs_of(op, SMALL, cell, torch.float32), **options_of(op, cell), backend="cpu")


def test_layer_attention_without_a_cell_is_not_in_its_way():
    register_minimal()
    x, heads = torch.randn(2, 8, 4, 4), {"heads": 2, "cell": "minimal"}
    attention = dla.Attention(torch.randn(3), torch.randn(3), torch.randn(8, 1, 3, 3))
    dla.light_step(x, x, attention, torch.ones(8), backend="cpu", **heads)
    dla.base_step(x, None, attention, backend="cpu", **heads)


def test_a_name_may_be_registered_again_but_not_that_of_a_kernel():
    register_minimal()
    register_minimal(output=lambda h, c: torch.sigmoid(c))
    assert (nn.CellModule(8, "minimal").output((torch.zeros(1, 8),)) == 0.5).all()
    for name in ("lstm", "dsu-paper", "My cell"):
        with pytest.raises(ValueError, match=f"none of rnn, lstm, dia, dsu, se, eca, got '{name}'"):
            dla.register_cell(name, gates=2, states=("c",), step=minimal, output=lambda h, c: c)
    assert "minimal" not in [cell.kind for cell in cells.ALL_RULES]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gates": 0}, "gates: expected at least 1, got 0"),
        ({"gates": True}, "gates: expected at least 1, got True"),
        ({"states": ("h",)}, "step, output: expected h alone to matter"),
        ({"states": ("h",), "step": lambda a, h, c: (a[0], c)}, "step, output: expected h alone to matter"),
        ({"states": ("c", "h")}, "states: expected one of .*, got"),
        ({"projection": "full"}, "projection: expected one of joint, split, dense, light, got 'full'"),
        ({"step": lambda a, h, c: c}, r"step: expected h and c .* two tensors \[2, 3\], got a tensor \[2, 3\]"),
        ({"step": lambda a, h, c: (c, c[:1])}, r"step: .*, got a tensor \[2, 3\], a tensor \[1, 3\]"),
        ({"output": lambda h, c: c.sum()}, r"output: expected a tensor \[2, 3\], got a tensor \[\]"),
        ({"feed": torch.sigmoid}, r"step: expected h = feed\(c\), as states=\('c',\) keeps c alone"),
    ],
)
def test_what_is_no_cell_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        register_minimal(**wrong)
    with pytest.raises(ValueError, match=r"Cell\.kind: expected one of rnn, lstm, dia, dsu, se, eca, got 'minimal'"):
        dla.Cell("minimal")


def test_a_cell_of_another_process_asks_for_its_registration():
    cell = register_minimal()
    del cells.KINDS["minimal"], rules.RULES["minimal"]
    with pytest.raises(ValueError, match="'minimal' is not registered here"):
        _ = cell.num_gates
