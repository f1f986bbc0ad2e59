"""The reference follows a second reading of the equations: plain numbers, one sample and layer at a time."""

from math import exp, tanh

import pytest
import torch

import dla_kernels as dla
from dla_kernels import Cell, reference
from dla_kernels.cells import weight_shapes

from .calls import flat_function
from .cases import CELLS, FEW_CELLS, SMALL, Shape, cell_name, inputs_of, rows, state_forms, weights

TINY = Shape.parse("T2-B2-C2-R1-HW1x2,1x1")

# ---- section 3 of the design, over lists of floats ----


def sig(v):
    return 1 / (1 + exp(-v))


ACT = {"sigmoid": sig, "tanh": tanh, "relu": lambda v: max(v, 0.0), "identity": lambda v: v}


def product(w, v):
    return [sum(w_k * v_k for w_k, v_k in zip(row, v)) for row in w]


def plus(*vectors):
    return [sum(values) for values in zip(*vectors)]


def relu(v):
    return [max(value, 0.0) for value in v]


def gates(cell, w, y, h):
    """Return the pre-activations a [NG*C] of one sample."""
    if cell.projection == "joint":
        return plus(product(w["w2"], relu(product(w["w1"], h + y))), w["b2"])
    if cell.projection == "split":
        sides = {"y": y, "h": h}
        hidden = {s: relu(plus(product(w[f"w1{s}"], v), w[f"b1{s}"])) for s, v in sides.items()}
        return plus(*(plus(product(w[f"w2{s}"], u), w[f"b2{s}"]) for s, u in hidden.items()))
    return plus(product(w["wy"], y), w["by"], product(w["wh"], h), w["bh"])


def dyn(cell, w, y, h, c):
    """Return the next h, the next c and the output of one sample: lists of C numbers."""
    a, C = gates(cell, w, y, h), len(y)
    gate = [a[n : n + C] for n in range(0, len(a), C)]
    if cell.kind == "rnn":
        h = [tanh(v) for v in gate[0]]
        return h, c, h
    i, f, g, *_ = gate
    c = [sig(f[k]) * c[k] + sig(i[k]) * tanh(g[k]) for k in range(C)]
    if cell.kind == "dsu":
        return [ACT[cell.act](v) for v in c], c, ([sig(v) for v in c] if cell.output == "sigmoid" else c)
    squash = tanh if cell.kind == "lstm" else ACT[cell.act]
    h = [sig(o) * squash(v) for o, v in zip(gate[3], c)]
    return h, c, h


def start(cell, state, b, C):
    """Return (h, c) of sample b before the first layer."""
    if state is None:
        starts_from_act = cell.kind == "dsu" and cell.output == "context"
        return [ACT[cell.act](0.0) if starts_from_act else 0.0] * C, [0.0] * C
    *h, c = (s[b].tolist() for s in state)
    if h:
        return h[0], c
    return ([ACT[cell.act](v) for v in c], c) if cell.kind == "dsu" else (c, c)  # another that keeps c alone feeds it


def by_hand(xs, weights, state, cell):
    """Return what layer_update does, one sample after the other: maps and states as tensors again."""
    w = {name: weight.tolist() for name, weight in weights._asdict().items()}
    out, states = [x.clone() for x in xs], {"h": [], "c": []}
    for b, sample in enumerate(zip(*xs)):
        pooled = [[sum(map(sum, plane)) / (len(plane) * len(plane[0])) for plane in x.tolist()] for x in sample]
        h, c = start(cell, state, b, xs[0].shape[1])
        trace = []
        for y in pooled:
            h, c, _ = dyn(cell, w, y, h, c)
            trace.append({"h": h, "c": c})
        for name, kept in states.items():
            kept.append([step[name] for step in trace])
        for x, y in zip(out, pooled):
            _, _, d = dyn(cell, w, y, h, c)
            for k, d_k in enumerate(d):
                x[b, k] *= d_k
    return out, tuple(torch.tensor(states[n], dtype=torch.float64).transpose(0, 1) for n in cell.state_names)


# ---- tests ----


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_the_reference_follows_the_equations(cell):
    for form in (None, *state_forms(cell)):
        inputs = inputs_of("layer_update", SMALL, cell, torch.float64, form=form)
        ours, theirs = reference.layer_update(**inputs, cell=cell), by_hand(**inputs, cell=cell)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13, msg=lambda m, form=form: f"{form}: {m}")


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_layer_update_equals_the_ops_it_is_made_of(cell):
    inputs = inputs_of("layer_update", SMALL, cell, torch.float64)
    xs, w, state = inputs.values()
    out, states = reference.layer_update(**inputs, cell=cell)
    y = reference.gap(xs)
    scanned = reference.scan(y, w, cell=cell, state=state)
    d = reference.refresh(y, tuple(s[-1] for s in scanned), w, cell=cell)
    torch.testing.assert_close((out, states), (reference.rescale(xs, d), scanned), rtol=0, atol=0)


def test_a_stage_may_have_one_layer():
    inputs = inputs_of("layer_update", Shape.parse("T1-B2-C6-R3-HW3x4"), dla.PAPER_DSU, torch.float64)
    ours = dla.layer_update(**inputs, backend="reference")
    torch.testing.assert_close(ours, by_hand(**inputs, cell=dla.PAPER_DSU), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("cell", "h0"),
    [(dla.RELEASED_DSU, 0.0)]
    + [(Cell("dsu", act, "sigmoid"), 0.0) for act in ACT]
    + [(Cell("dsu", act, "context"), value(0.0)) for act, value in ACT.items()]
    + [(Cell(kind), 0.0) for kind in ("lstm", "dia")],
)
def test_no_state_means_c_is_zero_and_h_as_documented(cell, h0):
    y, w, zeros = (
        rows(SMALL, torch.float64),
        weights(cell, SMALL, torch.float64),
        torch.zeros(SMALL.B, SMALL.C).double(),
    )
    implicit = reference.scan(y, w, cell=cell)
    explicit = reference.scan(y, w, cell=cell, state=(zeros + h0, zeros))
    torch.testing.assert_close(implicit, explicit, rtol=0, atol=0)


@pytest.mark.parametrize(("cell", "multiple"), [(dla.PAPER_DSU, 5), (dla.RELEASED_DSU, 8)])
@pytest.mark.parametrize(("C", "r"), [(64, 4), (256, 16), (1000, 20)])
def test_presets_have_the_published_number_of_weights(cell, multiple, C, r):
    matrices = [shape for shape in weight_shapes(cell, C, C // r).values() if len(shape) == 2]
    assert sum(rows * columns for rows, columns in matrices) == multiple * C**2 // r


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_permuting_the_batch_permutes_the_result(cell):
    """The published refresh reads the first sample's state for every sample; ours does not."""
    shape = Shape.parse("T3-B5-C6-R3-HW2x3,1x1")
    xs, w, state = inputs_of("layer_update", shape, cell, torch.float64).values()
    order = torch.randperm(shape.B)
    out, states = reference.layer_update(xs, w, cell=cell, state=state)
    permuted = reference.layer_update([x[order] for x in xs], w, cell=cell, state=tuple(s[order] for s in state))
    expected = [x[order] for x in out], tuple(s[:, order] for s in states)
    torch.testing.assert_close(permuted, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cell", FEW_CELLS, ids=cell_name)
def test_the_reference_is_differentiable_twice(cell):
    inputs = inputs_of("layer_update", TINY, cell, torch.float64)
    function, tensors = flat_function("layer_update", inputs, cell=cell, backend="reference")
    assert torch.autograd.gradgradcheck(function, tensors)
