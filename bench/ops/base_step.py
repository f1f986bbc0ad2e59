"""Benchmark base_step over a stage of DLA-B: T layers one after the other, as published but for the copies."""

from functools import partial

from bench.model.formulas import BACKWARD, Traffic
from bench.ops import attend, depthwise, mix
from bench.ops.work import Work, benchmarks
from bench.targets.steps import Row, Stage, base_stage


def work(shape, dtype, device):
    stage = Stage(Row(shape.B, shape.C, shape.HW, shape.T, shape.r), dtype, device)

    def call(f, t):
        return stage.call(partial(base_stage, base_step=f.base_step), t)

    return Work("base_step", shape, shape.T, stage.tensors, call)


def traffic(of, forward):
    """Return the traffic of T layers: each has its value, its mix over all values so far, a scan of its mean, and a
    refresh of the keys and means of the earlier layers."""
    y, h, pair = of.products
    parts = []
    for t in range(1, of.T + 1):
        layer = of._replace(T=t, S=t * of.M, rows=t * of.row)
        parts += [op.traffic(layer, forward) for op in (depthwise, attend, mix)]
        refreshed, after = 2 * (t - 1), int(t > 1)  # rows to refresh; whether there are any
        taken, given = (2 + refreshed + after) * of.row, (1 + refreshed) * of.row
        flops = y + h + pair + refreshed * (y + pair) + after * h
        if forward:
            parts.append(Traffic(taken + of.weights, given, 0, flops))
            continue
        parts.append(Traffic(taken + given + of.weights, taken + of.weights, 0, BACKWARD * flops))
        if t < of.T:  # the values' gradients from later layers are read too
            parts.append(Traffic(t * of.M, 0, 0, t * of.pixels))
    return Traffic(0, 0).plus(*parts)


test_base_step = benchmarks(work)
