"""rescale: T maps by their gates."""

from bench.ops.work import Work, benchmarks, maps, rows


def work(shape, dtype, device):
    tensors = [*maps(shape.T, shape, dtype, device), rows(shape.T, shape, dtype, device)]
    return Work("rescale", shape, shape.T, tensors, lambda f, t: f.rescale(t[:-1], t[-1]))


test_rescale = benchmarks(work)
