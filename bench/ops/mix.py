"""Benchmark mix, which sums what the last of T layers attends to."""

from bench.model.formulas import Traffic
from bench.ops.work import Work, benchmarks, maps, rows


def work(shape, dtype, device):
    tensors = [*maps(shape.T, shape, dtype, device), rows(shape.T, shape, dtype, device)]
    return Work("mix", shape, shape.T, tensors, lambda f, t: f.mix(t[:-1], t[-1])[:1])


def traffic(of, forward):
    if forward:
        return Traffic(of.S + of.rows, of.M, flops=2 * of.T * of.pixels)
    return Traffic(of.S + of.M + of.rows, of.S + of.rows, flops=3 * of.T * of.pixels)


test_mix = benchmarks(work)
