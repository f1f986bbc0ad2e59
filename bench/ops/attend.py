"""Benchmark attend, which says what the last of T layers has of each layer, from rows alone."""

from bench.model.formulas import Traffic
from bench.ops.work import Work, benchmarks, filters, heads, rows


def work(shape, dtype, device):
    y, *past = (rows(n, shape, dtype, device) for n in (1, *[n * (shape.T - 1) for n in (1, 1, 2)]))
    q, k, _ = filters(shape, dtype, device)
    G = heads(shape)
    return Work("attend", shape, 0, [y[0], q, k, *past], lambda f, t: f.attend(*t[:3], t[3:], heads=G))


def traffic(of, forward):
    past, BC = (of.T - 1) * of.row, of.B * of.C
    if forward:
        return Traffic(of.row + 4 * past, 3 * of.rows, flops=(4 * of.K + 5 * of.T - 2) * BC)
    return Traffic(of.row + 4 * past + 3 * of.rows, of.row + 4 * past, flops=(12 * of.K + 17 * of.T - 6) * BC)


test_attend = benchmarks(work)
