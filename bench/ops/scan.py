"""Benchmark scan, which runs the cell over T layers. `cell` may be another, such as the LSTM that torch has too."""

from bench.model.formulas import BACKWARD, Traffic
from bench.ops.work import CELLS, Work, benchmarks, cell_weights, pack, rows


def work(shape, dtype, device, cell=CELLS["scan"]):
    y, weights = rows(shape.T, shape, dtype, device), cell_weights(cell, shape, dtype, device)
    return Work("scan", shape, 0, [y, *weights], lambda f, t: f.scan(t[0], pack(cell, t[1:]), cell=cell), cell)


def traffic(of, forward):
    y, h, pair = of.products
    saved, flops = of.states * of.rows, of.T * (y + h + pair)
    if forward:
        return Traffic(of.rows + of.weights, saved, flops=flops)
    return Traffic(of.rows + 2 * saved + of.weights, of.rows + of.weights, flops=BACKWARD * flops)


test_scan = benchmarks(work)
