"""Benchmark rescale, which multiplies T maps by their gates."""

from bench.model.formulas import Traffic
from bench.ops.work import Work, benchmarks, maps, rows


def work(shape, dtype, device):
    tensors = [*maps(shape.T, shape, dtype, device), rows(shape.T, shape, dtype, device)]
    return Work("rescale", shape, shape.T, tensors, lambda f, t: f.rescale(t[:-1], t[-1]))


def traffic(of, forward):
    if forward:
        return Traffic(of.S + of.rows, of.S, flops=of.T * of.pixels)
    return Traffic(2 * of.S + of.rows, of.S + of.rows, flops=3 * of.T * of.pixels)


test_rescale = benchmarks(work)
