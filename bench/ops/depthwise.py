"""depthwise: the values of a layer, a 3x3 filter for each channel."""

from bench.ops.work import Work, benchmarks, filters, maps


def work(shape, dtype, device):
    (x,), (_, _, v) = maps(1, shape, dtype, device), filters(shape, dtype, device)
    return Work("depthwise", shape, 1, [x, v], lambda f, t: f.depthwise(*t))


test_depthwise = benchmarks(work)
