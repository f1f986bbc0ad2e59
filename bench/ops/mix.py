"""mix: what the last of T layers attends to."""

from bench.ops.work import Work, benchmarks, maps, rows


def work(shape, dtype, device):
    tensors = [*maps(shape.T, shape, dtype, device), rows(shape.T, shape, dtype, device)]
    return Work("mix", shape, shape.T, tensors, lambda f, t: f.mix(t[:-1], t[-1])[:1])


test_mix = benchmarks(work)
