"""base_step: a stage of DLA-B, T layers one after the other, as published but for the copies."""

from functools import partial

from bench.ops.work import Work, benchmarks
from bench.targets.attention import Row, Stage, base_stage


def work(shape, dtype, device):
    stage = Stage(Row(shape.B, shape.C, shape.HW, shape.T, shape.r), dtype, device)

    def call(f, t):
        return stage.call(partial(base_stage, base_step=f.base_step), t)

    return Work("base_step", shape, shape.T, stage.tensors, call)


test_base_step = benchmarks(work)
