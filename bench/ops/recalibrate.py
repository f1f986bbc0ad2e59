"""Benchmark recalibrate, which ends a residual block: squeeze and excitation, the shortcut, the relu."""

from bench.model.formulas import BACKWARD, Traffic
from bench.ops.work import CELLS, Work, benchmarks, cell_weights, maps, pack, rows

CELL = CELLS["recalibrate"]


def work(shape, dtype, device, cell=CELL, adds=True):
    """Return the work, with another cell or without a shortcut where that is asked for."""
    count, states = 1 + adds, len(cell.state_names)
    tensors = [*maps(count, shape, dtype, device), *rows(states, shape, dtype, device)]
    tensors += cell_weights(cell, shape, dtype, device)

    def call(f, t):
        shortcut, state, weights = t[1] if adds else None, (*t[count : count + states],), t[count + states :]
        out, state = f.recalibrate(
            t[0], pack(cell, weights), cell=cell, state=state or None, shortcut=shortcut, relu=True
        )
        return [out, *state]

    return Work("recalibrate", shape, count, tensors, call, cell)


def traffic(of, forward):
    if forward:  # scaled, added, cut off at 0
        return Traffic(2 * of.M + of.weights, of.M + of.row, of.M, of.products.y + 4 * of.pixels)
    # Of dout and out comes what was let through; with a the gradient of the gate. Five rows: what is shown, its
    # gradient and that of y, and y and the gate's that are kept for the weights'.
    return Traffic(
        3 * of.M + of.row + of.weights,
        2 * of.M + of.weights + 5 * of.row,
        2 * of.M,
        BACKWARD * of.products.y + 5 * of.pixels,
    )


test_recalibrate = benchmarks(work)
