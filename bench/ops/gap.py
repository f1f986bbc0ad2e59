"""gap: the means of T maps."""

from bench.ops.work import Work, benchmarks, maps


def work(shape, dtype, device):
    return Work("gap", shape, shape.T, maps(shape.T, shape, dtype, device), lambda f, t: (f.gap(t),))


test_gap = benchmarks(work)
