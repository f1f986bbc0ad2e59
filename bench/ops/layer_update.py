"""layer_update: a whole stage, with the paper's cell."""

from bench.ops.work import CELLS, Work, benchmarks, cell_weights, maps, pack

CELL = CELLS["layer_update"]


def work(shape, dtype, device):
    T = shape.T
    tensors = [*maps(T, shape, dtype, device), *cell_weights(CELL, shape, dtype, device)]
    return Work("layer_update", shape, T, tensors, lambda f, t: f.layer_update(t[:T], pack(CELL, t[T:]))[0], CELL)


test_layer_update = benchmarks(work)
