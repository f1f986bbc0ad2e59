"""refresh: the gates of T layers from the last context."""

from bench.ops.work import CELLS, Work, benchmarks, cell_weights, pack, rows

CELL = CELLS["refresh"]


def work(shape, dtype, device):
    y, (c,) = rows(shape.T, shape, dtype, device), rows(1, shape, dtype, device)
    weights = cell_weights(CELL, shape, dtype, device)

    def call(f, t):
        return (f.refresh(t[0], (t[1],), pack(CELL, t[2:]), cell=CELL),)

    return Work("refresh", shape, 0, [y, c, *weights], call, CELL)


test_refresh = benchmarks(work)
