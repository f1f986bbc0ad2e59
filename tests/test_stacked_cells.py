"""Cells stacked: those after the first are dense, and take the h of the one below for their y."""

import pytest
import torch

import dla_kernels as dla
from dla_kernels.nn import CellModule, ContextScan, LayerUpdate, LayerwiseIntegration

from .tolerances import assert_equal_to_rounding

B, C = 3, 12
CELLS = [dla.Cell("rnn"), dla.Cell("lstm"), dla.Cell("dia"), dla.Cell("dsu"), dla.Cell("dsu-paper")]


@pytest.mark.parametrize("start", ["zeros", "random", "learned"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.rule)
def test_a_stack_is_its_cells_one_after_the_other(cell, start):
    module = CellModule(C, cell, layers=3, start=start).double()
    _, *above = module.stack
    alone = CellModule(C, cell, start=start).double()
    alone.load_state_dict({name: p for name, p in module.state_dict().items() if not name.startswith("above")})
    state, states = None, [None] * 3
    for _ in range(2):
        y = torch.randn(B, C, dtype=torch.float64)
        state = module(y, state)
        expected = []
        for i, one in enumerate((alone, *above)):
            states[i] = one(y, states[i])
            expected += states[i]
            y = states[i][0] if "h" in cell.state_names else torch.sigmoid(states[i][0])
        assert_equal_to_rounding(state, expected)
        assert_equal_to_rounding([module.output(state)], [above[-1].output(states[-1])])
    assert [one.cell.projection for one in above] == ["dense"] * 2


def test_the_dia_papers_three_cells_have_its_weights():
    """Table 12: 3.33 M for ResNet-164 with three cells, 1.95 M with one."""
    one, three = (
        sum(p.numel() for w in (64, 128, 256) for p in CellModule(w, "dia", layers=n).parameters()) for n in (1, 3)
    )
    assert three - one == sum(2 * (2 * 4 * w * w + 2 * 4 * w) for w in (64, 128, 256))
    assert (1.95e6 + three - one) / 1e6 == pytest.approx(3.33, abs=0.01)


def test_dropout_is_of_what_goes_up_in_training():
    module, y = CellModule(C, "lstm", layers=2, dropout=0.5), torch.randn(B, C)
    (h0, c0, *above), again = module(y), module(y)
    assert torch.equal(h0, again[0]) and torch.equal(c0, again[1])
    assert not torch.equal(above[0], again[2])
    module.eval()
    assert all(map(torch.equal, module(y), module(y)))


def test_integration_takes_a_stack():
    cell = CellModule(C, "dia", layers=3).double()
    integrate, state = LayerwiseIntegration(cell), None
    x, a = torch.randn(2, B, C, 4, 4, dtype=torch.float64, requires_grad=True)
    out, state = integrate(x, a)
    again = cell(a.mean((2, 3)))
    assert len(state) == 6
    assert_equal_to_rounding([out, *state], [x + a * again[4][:, :, None, None], *again])
    (grad,) = torch.autograd.grad(out.sum(), [cell.stack[2].wy])
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("module", [ContextScan, LayerUpdate])
def test_ops_take_one_cell(module):
    with pytest.raises(TypeError, match="expected one that the ops run by its rule, got 2 stacked"):
        module(CellModule(C, "dia", layers=2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CellModule(C, "dia", layers=0), "layers, dropout: expected an integer of at least 1"),
        (lambda: CellModule(C, "dia", layers=2, dropout=1.0), "and a number from 0 to less than 1, got 2, 1.0"),
        (lambda: CellModule(C, "rnn", layers=2)(torch.ones(B, C), (torch.ones(B, C),)), "for each of 2 cells, got 1"),
        (lambda: CellModule(C, "rnn", layers=2)(*torch.ones(2, B, C)), "for each of 2 cells, got Tensor"),
        (
            lambda: CellModule(C, "rnn")(*torch.ones(2, B, C)),
            r"state: expected a tuple \(h,\) for a rnn cell, got Tensor",
        ),
    ],
)
def test_mistakes_are_explained(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_stack_says_so():
    assert repr(CellModule(C, "dia", layers=3)).splitlines()[1].strip() == "12, dia, split, R=3, layers=3"
