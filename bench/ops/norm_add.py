"""Benchmark norm_add, which applies the norm behind a step and the shortcut around it, in training."""

import torch

from bench.model.formulas import Traffic
from bench.ops.work import Work, benchmarks, maps
from dla_kernels.cells import accumulate_dtype
from dla_kernels.reference.heads import moments_of


def work(shape, dtype, device):
    x, o = maps(2, shape, dtype, device)
    gamma, beta = torch.ones(2, shape.C, dtype=accumulate_dtype(dtype), device=device)
    moments = moments_of(o)

    def call(f, t):
        return (f.norm_add(*t, None, moments=moments, relu=True),)

    return Work("norm_add", shape, 2, [x, o, gamma, beta], call)


def traffic(of, forward):
    if forward:
        return Traffic(2 * of.M, of.M, flops=4 * of.pixels)
    return Traffic(2 * of.M, of.M, 2 * of.M, 10 * of.pixels)


test_norm_add = benchmarks(work)
