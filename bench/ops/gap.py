"""Benchmark gap, which takes the means of T maps."""

from bench.model.formulas import Traffic
from bench.ops.work import Work, benchmarks, maps


def work(shape, dtype, device):
    return Work("gap", shape, shape.T, maps(shape.T, shape, dtype, device), lambda f, t: (f.gap(t),))


def traffic(of, forward):
    if forward:
        return Traffic(of.S, of.rows, flops=of.T * of.pixels)
    return Traffic(of.rows, of.rows)  # the gradient of a map is an expanded view


test_gap = benchmarks(work)
