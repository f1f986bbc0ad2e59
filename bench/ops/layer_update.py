"""Benchmark layer_update, which runs a whole stage, with the paper's cell."""

from bench.model.formulas import BACKWARD, Traffic
from bench.ops.work import CELLS, Work, benchmarks, cell_weights, maps, pack

CELL = CELLS["layer_update"]


def work(shape, dtype, device):
    T = shape.T
    tensors = [*maps(T, shape, dtype, device), *cell_weights(CELL, shape, dtype, device)]
    return Work("layer_update", shape, T, tensors, lambda f, t: f.layer_update(t[:T], pack(CELL, t[T:]))[0], CELL)


def traffic(of, forward):
    y, h, pair = of.products
    flops, kept = of.T * (y + h + 2 * pair) + h, (1 + of.states) * of.rows
    if forward:
        return Traffic(of.S + of.weights, of.S + kept, of.S, flops + 2 * of.T * of.pixels)
    return Traffic(2 * of.S + kept + of.weights, of.S + of.weights, of.S, BACKWARD * flops + 4 * of.T * of.pixels)


test_layer_update = benchmarks(work)
