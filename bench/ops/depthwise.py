"""Benchmark depthwise, which makes the values of a layer by a 3x3 filter for each channel."""

from bench.model.formulas import TAPS, Traffic
from bench.ops.work import Work, benchmarks, filters, maps


def work(shape, dtype, device):
    (x,), (_, _, v) = maps(1, shape, dtype, device), filters(shape, dtype, device)
    return Work("depthwise", shape, 1, [x, v], lambda f, t: f.depthwise(*t))


def traffic(of, forward):
    if forward:
        return Traffic(of.M + of.filters, of.M + 2 * of.row, flops=(TAPS + 2) * of.pixels)
    return Traffic(2 * of.M + 2 * of.row + of.filters, of.M + of.filters, flops=2 * (TAPS + 1) * of.pixels)


test_depthwise = benchmarks(work)
