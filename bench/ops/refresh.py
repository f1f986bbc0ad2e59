"""Benchmark refresh, which computes the gates of T layers from the last context."""

from bench.model.formulas import BACKWARD, Traffic
from bench.ops.work import CELLS, Work, benchmarks, cell_weights, pack, rows

CELL = CELLS["refresh"]


def work(shape, dtype, device):
    y, (c,) = rows(shape.T, shape, dtype, device), rows(1, shape, dtype, device)
    weights = cell_weights(CELL, shape, dtype, device)

    def call(f, t):
        return (f.refresh(t[0], (t[1],), pack(CELL, t[2:]), cell=CELL),)

    return Work("refresh", shape, 0, [y, c, *weights], call, CELL)


def traffic(of, forward):
    y, h, pair = of.products
    last, flops = of.states * of.row + of.weights, of.T * (y + pair) + h
    if forward:
        return Traffic(of.rows + last, of.rows, flops=flops)
    return Traffic(2 * of.rows + last, of.rows + last, flops=BACKWARD * flops)


test_refresh = benchmarks(work)
