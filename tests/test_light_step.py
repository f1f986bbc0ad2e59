"""DLA-L and MRLA-L inside a network: so far the reference, against a second reading of its equation."""

import pytest
import torch
from torch.autograd import gradcheck

import dla_kernels as dla
from dla_kernels import reference
from dla_kernels.attention import Attention, filter_width

from .cases import CELLS, FEW_CELLS, Shape, cell_name
from .stages import attention, cell_weights, layers

SIZES = ["1x1", "3x5", "7x7"]
DOUBLE = torch.float64


def neighbours(x, b, c, i, j):
    """The 3x3 pixels around one, zero beyond the border."""
    H, W = x.shape[2:]
    inside = [[0 <= i + di < H and 0 <= j + dj < W for dj in (-1, 0, 1)] for di in (-1, 0, 1)]
    return [[x[b, c, i + di - 1, j + dj - 1] if inside[di][dj] else 0.0 for dj in range(3)] for di in range(3)]


def convolved(x, taps):
    out = torch.empty_like(x)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        around = neighbours(x, b, c, i, j)
        out[b, c, i, j] = sum(taps[c, 0, di, dj] * around[di][dj] for di in range(3) for dj in range(3))
    return out


def expected_gate(y, filters, heads):
    """sig(q . k / sqrt(D)), one number for each channel."""
    B, C = y.shape
    K, D = len(filters.q), C // heads

    def filtered(taps, b, c):
        return sum(taps[j] * y[b, c + j - K // 2] for j in range(K) if 0 <= c + j - K // 2 < C)

    gate = torch.empty_like(y)
    for b in range(B):
        for g in range(heads):
            head = range(g * D, (g + 1) * D)
            score = sum(filtered(filters.q, b, c) * filtered(filters.k, b, c) for c in head) / D**0.5
            gate[b, head] = torch.sigmoid(score)
    return gate


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("published", [True, False], ids=["published", "paper"])
@pytest.mark.parametrize("cell", [*FEW_CELLS, None], ids=lambda cell: cell_name(cell) if cell else "mrla")
def test_the_reference_follows_its_equation(cell, published, size):
    shape = Shape.parse(f"T2-B2-C4-R2-HW{size}")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam = cell_weights(cell, shape), torch.randn(4, dtype=DOUBLE)
    e = torch.randn(4, 1, 3, 3, dtype=DOUBLE) if published else None
    options = {"heads": 2, "e": e} | ({"cell": cell} if cell else {})
    o, state, _ = reference.light_step(x, o_prev, filters, lam, w, **options)

    y, refreshed = reference.gap([x, o_prev]), o_prev
    if cell:
        states = reference.scan(y[:1], w, cell=cell)
        torch.testing.assert_close(state, tuple(s[0] for s in states))
        refreshed = o_prev * reference.refresh(y[1:], state, w, cell=cell)[0, :, :, None, None]
    if published:
        refreshed = refreshed + convolved(o_prev, e)
    gate = expected_gate(y[0], filters, 2)[..., None, None]
    torch.testing.assert_close(o, lam[:, None, None] * refreshed + gate * convolved(x, filters.v))


def test_without_a_layer_before_there_is_attention_alone():
    shape = Shape.parse("T1-B2-C6-HW3x3")
    ((x, filters),) = layers(shape)
    lam = torch.randn(6, dtype=DOUBLE)
    o, state, _ = reference.light_step(x, None, filters, lam, heads=3)
    assert state is None
    torch.testing.assert_close(o, reference.light_step(x, torch.zeros_like(x), filters, lam, heads=3)[0])


def test_both_convolutions_and_the_rescale_are_one_filter_per_sample():
    """What the kernels are built on: x * w + dwconv(x; E) is dwconv(x; E + w * centre)."""
    x, d, e = (torch.randn(s, dtype=DOUBLE) for s in ((2, 4, 5, 3), (2, 4), (4, 1, 3, 3)))
    centre = torch.zeros(3, 3, dtype=DOUBLE)
    centre[1, 1] = 1
    for b in range(2):
        taps = e + d[b, :, None, None, None] * centre
        one = torch.nn.functional.conv2d(x[b : b + 1], taps, padding=1, groups=4)
        torch.testing.assert_close(one, x[b : b + 1] * d[b, :, None, None] + convolved(x[b : b + 1], e))


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_a_sample_is_refreshed_with_its_own_state(cell):
    shape = Shape.parse("T2-B3-C4-R2-HW2x3")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam, order = cell_weights(cell, shape), torch.randn(4, dtype=DOUBLE), [2, 0, 1]
    o, _, _ = reference.light_step(x, o_prev, filters, lam, w, heads=2, cell=cell)
    moved, _, _ = reference.light_step(x[order], o_prev[order], filters, lam, w, heads=2, cell=cell)
    torch.testing.assert_close(moved, o[order])


def test_the_reference_is_differentiable():
    shape = Shape.parse("T2-B2-C4-R2-HW2x3")
    (x, filters), (o_prev, _) = layers(shape)
    w, lam, e = cell_weights(dla.PAPER_DSU, shape), torch.randn(4, dtype=DOUBLE), attention(4).v

    def f(x, o_prev, lam, e, q, k, v, *w):
        o, state, _ = reference.light_step(x, o_prev, Attention(q, k, v), lam, dla.Joint(*w), heads=2, e=e)
        return o, *state

    assert gradcheck(f, [t.requires_grad_() for t in (x, o_prev, lam, e, *filters, *w)])


def test_the_width_of_a_filter_is_odd_and_grows_with_the_channels():
    assert [filter_width(C) for C in (1, 16, 64, 128, 512, 2048)] == [1, 3, 3, 5, 5, 7]
