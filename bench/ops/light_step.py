"""light_step: one layer of DLA-L, as published."""

from bench.ops.work import Work, benchmarks
from bench.targets.attention import Layer, Row


def work(shape, dtype, device):
    layer = Layer(Row(shape.B, shape.C, shape.HW, r=shape.r), dtype, device)
    return Work("light_step", shape, 2, layer.tensors, lambda f, t: layer.call(f.light_step, t))


test_light_step = benchmarks(work)
