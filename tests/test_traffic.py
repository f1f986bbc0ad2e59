"""The traffic model equals every op's equations, worked out by hand."""

import pytest

from bench.common import Shape
from bench.model import formulas
from bench.ops.work import every_op

SHAPE = Shape(4, 3, 20, 6, 5)
T, B, C, R, HW = 4, 3, 20, 4, 36
P = 2160  # pixels of a map, B C HW
M, S = 4 * P, 16 * P  # bytes of a map in fp32, of T maps
ROW = 240  # bytes of [B, C]
TAPS = 720  # bytes of a 3x3 filter for each channel
JOINT = 4 * (R * 2 * C + 3 * C * R + 3 * C)  # bytes of w1, w2, b2
SPLIT = 4 * 2 * (R * C + R + 3 * C * R + 3 * C)  # bytes of two bottlenecks with biases
SQUEEZE = 4 * (R * C + R + C * R + C)  # bytes of one, to a gate for each channel
UPTO = 1 + 2 + 3 + 4  # values that T layers of DLA-B mix
BEFORE = 1 + 2 + 3  # those of earlier layers
BCR, BC = B * C * R, B * C

# The split cell: 2 R C into the bottleneck and 6 R C out of it, for y and for h. In a stage of DLA-B each layer scans
# one y, and refreshes the keys and the means of all earlier ones with one h.
LIGHT_CELL = 4 * 8 * BCR
BASE_CELL = T * 16 * BCR + 2 * BEFORE * 8 * BCR + 3 * 8 * BCR
# A layer's attention over m layers: a filter of 3 channels each for q and k; 2 m for scores, m for coefficients,
# 2 (m - 1) for the refresh. Its gradients: all of that again, twice the filters, 8 m and 4 (m - 1).
ATTEND = (12 + 3 * T + 2 * (T - 1)) * BC
ATTEND_BACKWARD = (36 + 11 * T + 6 * (T - 1)) * BC
BASE_ATTEND = (12 * T + 3 * UPTO + 2 * BEFORE) * BC
BASE_ATTEND_BACKWARD = (36 * T + 11 * UPTO + 6 * BEFORE) * BC
# What DLA-B's scans and refreshes move beside maps and attention.
BASE_ROWS, BASE_GATES = (2 * T + 2 * BEFORE + 3) * ROW, (T + 2 * BEFORE) * ROW


# (op, pass): read, written, again, operations
EXPECTED = {
    # y = mean x; dx is an expanded view of dy / HW
    ("gap", "forward"): (S, T * ROW, 0, T * P),
    ("gap", "backward"): (T * ROW, T * ROW, 0, 0),
    # reads y and weights, writes c; 2 C R for W1y y, 2 C R for W1h h, 6 C R for W2 u
    ("scan", "forward"): (T * ROW + JOINT, T * ROW, 0, T * 10 * BCR),
    # reads y, c, dc; products again, to inputs, to weights
    ("scan", "backward"): (3 * T * ROW + JOINT, T * ROW + JOINT, 0, 3 * T * 10 * BCR),
    # W1h h once for all layers
    ("refresh", "forward"): (T * ROW + ROW + JOINT, T * ROW, 0, T * 8 * BCR + 2 * BCR),
    ("refresh", "backward"): (2 * T * ROW + ROW + JOINT, T * ROW + ROW + JOINT, 0, 3 * (T * 8 * BCR + 2 * BCR)),
    # x' = x d; dx = dx' d and dd = sum dx' x, of which neither waits for the other
    ("rescale", "forward"): (S + T * ROW, S, 0, T * P),
    ("rescale", "backward"): (2 * S + T * ROW, S + T * ROW, 0, 3 * T * P),
    # keeps y and c; W1y y is shared by scan and refresh
    ("layer_update", "forward"): (S + JOINT, S + 2 * T * ROW, S, 2 * T * P + T * 16 * BCR + 2 * BCR),
    # reads dx', x, y, c; dd = sum dx' x comes before dx = dx' d + dy / HW
    ("layer_update", "backward"): (
        2 * S + 2 * T * ROW + JOINT,
        S + JOINT,
        S,
        4 * T * P + 3 * (T * 16 * BCR + 2 * BCR),
    ),
    # reads a, the shortcut; relu(shortcut + a h) behind the mean of a; 2 C R into the bottleneck and out of it
    ("recalibrate", "forward"): (2 * M + SQUEEZE, M + ROW, M, 4 * P + 4 * BCR),
    # reads dout, out, a, y; what the relu let through, its product with a, and dout and out again for both gradients;
    # writes h, dh, dy, and y and dh again for the weights'
    ("recalibrate", "backward"): (3 * M + ROW + SQUEEZE, 2 * M + 5 * ROW + SQUEEZE, 2 * M, 5 * P + 3 * 4 * BCR),
    # nine multiplications and additions, and an addition for each of two means
    ("depthwise", "forward"): (M + TAPS, M + 2 * ROW, 0, 20 * P),
    # reads dv, x; to x and to the filter, and the means' gradients on top
    ("depthwise", "backward"): (2 * M + 2 * ROW + TAPS, M + TAPS, 0, 38 * P),
    # y; keys, scale and d for both of T - 1 layers; coef, keys, scale of T
    ("attend", "forward"): (ROW + 4 * 3 * ROW, 3 * T * ROW, 0, ATTEND),
    ("attend", "backward"): (ROW + 4 * 3 * ROW + 3 * T * ROW, ROW + 4 * 3 * ROW, 0, ATTEND_BACKWARD),
    # o = sum coef v; dv = coef do and dcoef = sum do v
    ("mix", "forward"): (S + T * ROW, M, 0, 2 * T * P),
    ("mix", "backward"): (S + M + T * ROW, S + T * ROW, 0, 3 * T * P),
    # x + relu(a o + b)
    ("norm_add", "forward"): (2 * M, M, 0, 4 * P),
    # reads dout, o, and both again behind their sums: a o + b, the mask, three for the sums, then up to four
    ("norm_add", "backward"): (2 * M, M, 2 * M, 10 * P),
    # x, o_prev, c; o, c, both means, which come before both filters
    ("light_step", "forward"): (2 * M + 2 * TAPS + SPLIT + ROW, M + 3 * ROW, 2 * M, 38 * P + LIGHT_CELL),
    # reads do, x, o_prev, c before and behind, both means; do again behind its sums
    ("light_step", "backward"): (
        3 * M + 2 * TAPS + SPLIT + 4 * ROW,
        2 * M + 2 * TAPS + SPLIT + ROW,
        M,
        74 * P + 3 * LIGHT_CELL,
    ),
    # each layer: x and its value, all values so far and o, and the weights
    ("base_step", "forward"): (
        T * (M + TAPS + SPLIT) + UPTO * (M + ROW) + T * ROW + 4 * BEFORE * ROW + BASE_ROWS,
        2 * T * M + 2 * T * ROW + 3 * UPTO * ROW + BASE_GATES,
        0,
        20 * T * P + 2 * UPTO * P + BASE_CELL + BASE_ATTEND,
    ),
    # and the sums so far of the values' gradients, of all layers but the last
    ("base_step", "backward"): (
        T * (2 * M + TAPS + SPLIT + 2 * ROW)
        + UPTO * (M + ROW)
        + T * M
        + BEFORE * M
        + T * ROW
        + (4 * BEFORE + 3 * UPTO) * ROW
        + BASE_ROWS
        + BASE_GATES,
        T * (M + TAPS + SPLIT) + UPTO * (M + ROW) + T * ROW + 4 * BEFORE * ROW + BASE_ROWS,
        0,
        38 * T * P + 3 * UPTO * P + BEFORE * P + 3 * BASE_CELL + BASE_ATTEND_BACKWARD,
    ),
}


def test_every_op_has_its_traffic_worked_out():
    assert set(EXPECTED) == {(op, which) for op in every_op() for which in ("forward", "backward")}


@pytest.mark.parametrize(("op", "which"), EXPECTED)
def test_traffic_is_that_worked_out_by_hand(op, which):
    assert formulas.traffic(op, which, SHAPE) == EXPECTED[op, which]


@pytest.mark.parametrize(
    ("op", "which", "read", "written", "again"),
    [
        ("scan", "forward", 0, 0, 0),
        ("refresh", "backward", 0, 0, 0),
        ("attend", "backward", 0, 0, 0),
        ("gap", "forward", T, 0, 0),
        ("layer_update", "forward", T, T, T),
        ("layer_update", "backward", 2 * T, T, T),
        ("norm_add", "backward", 2, 1, 2),
        ("recalibrate", "forward", 2, 1, 1),
        ("recalibrate", "backward", 3, 2, 2),
        ("light_step", "forward", 2, 1, 2),
        ("light_step", "backward", 3, 2, 1),
        ("base_step", "forward", T + UPTO, 2 * T, 0),
        ("base_step", "backward", 2 * T + T + UPTO + BEFORE, T + UPTO, 0),
    ],
)
def test_maps_halve_in_bf16_and_rows_do_not(op, which, read, written, again):
    """The difference is half of the maps, here by their number, and nothing else."""
    fp32, bf16 = (formulas.traffic(op, which, SHAPE, dtype) for dtype in ("fp32", "bf16"))
    assert bf16.flops == fp32.flops
    maps = [2 * (a - b) / M for a, b in zip(fp32[:3], bf16[:3])]
    assert maps == [read, written, again]


def test_bytes_of_layer_update_in_bf16_are_those_worked_out_by_hand():
    found = formulas.traffic("layer_update", "backward", SHAPE, "bf16")
    assert found[:3] == (S + 2 * T * ROW + JOINT, S / 2 + JOINT, S / 2)
