"""scan: the cell over T layers. `cell` may be another, such as the LSTM that torch has too."""

from bench.ops.work import CELLS, Work, benchmarks, cell_weights, pack, rows


def work(shape, dtype, device, cell=CELLS["scan"]):
    y, weights = rows(shape.T, shape, dtype, device), cell_weights(cell, shape, dtype, device)
    return Work("scan", shape, 0, [y, *weights], lambda f, t: f.scan(t[0], pack(cell, t[1:]), cell=cell), cell)


test_scan = benchmarks(work)
