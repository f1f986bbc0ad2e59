"""Benchmark light_step, which runs one layer of DLA-L, as published."""

from bench.model.formulas import BACKWARD, TAPS, Traffic
from bench.ops.work import Work, benchmarks
from bench.targets.steps import Layer, Row


def work(shape, dtype, device):
    layer = Layer(Row(shape.B, shape.C, shape.HW, r=shape.r), dtype, device)
    return Work("light_step", shape, 2, layer.tensors, lambda f, t: layer.call(f.light_step, t))


def traffic(of, forward):
    constants, state = 2 * of.filters + of.weights, of.states * of.row
    y, h, pair = of.products
    products, pixels = 2 * (y + h + pair), of.pixels
    if forward:
        return Traffic(
            2 * of.M + constants + state, of.M + 2 * of.row + state, 2 * of.M, products + (2 * TAPS + 2) * pixels
        )
    return Traffic(
        3 * of.M + constants + 2 * of.row + 2 * state,
        2 * of.M + constants + state,
        of.M,
        BACKWARD * products + (4 * TAPS + 2) * pixels,
    )


test_light_step = benchmarks(work)
