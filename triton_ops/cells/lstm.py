"""lstm: c' = sig(f) c + sig(i) tanh(g), h' = sig(o) tanh(c'), output h'. With another squash of c': dia."""

import triton
import triton.language as tl

from .activation import IDENTITY, TANH, sigmoid
from .state import Cell, memory, memory_bwd


@triton.jit
def feed(cell: tl.constexpr, c):  # h is saved, never derived from c
    return c


@triton.jit
def step(cell: tl.constexpr, a0, a1, a2, a3, h, c):
    c = memory(a0, a1, a2, c)
    return sigmoid(a3) * cell.act.value(c), c


@triton.jit
def output(cell: tl.constexpr, h, c):
    return h


@triton.jit
def step_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dh, dc):
    new = memory(a0, a1, a2, c)
    o = sigmoid(a3)
    da3 = dh * cell.act.value(new) * o * (1.0 - o)
    da0, da1, da2, dc = memory_bwd(a0, a1, a2, c, dc + cell.act.grad(new, dh * o))
    return da0, da1, da2, da3, dc


@triton.jit
def output_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dd):
    return step_bwd(cell, a0, a1, a2, a3, h, c, dd, tl.zeros_like(dd))  # 0 dd is NaN where dd is infinite


@triton.jit
def output_grad(cell: tl.constexpr, h, c, dd):
    return dd, tl.zeros_like(dd)


LSTM = Cell(4, True, True, 0.0, TANH, IDENTITY, feed, step, output, step_bwd, output_bwd, output_grad)
