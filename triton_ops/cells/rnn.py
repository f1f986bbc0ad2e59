"""rnn: h' = tanh(a), output h'"""

import triton
import triton.language as tl

from .activation import IDENTITY, TANH, tanh, tanh_grad
from .state import Cell


@triton.jit
def feed(cell: tl.constexpr, c):  # an RNN has no c
    return c


@triton.jit
def step(cell: tl.constexpr, a0, a1, a2, a3, h, c):
    return tanh(a0), c


@triton.jit
def output(cell: tl.constexpr, h, c):
    return h


@triton.jit
def step_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dh, dc):
    return tanh_grad(a0, dh), dc, dc, dc, dc


@triton.jit
def output_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dd):
    return tanh_grad(a0, dd), dd, dd, dd, tl.zeros_like(dd)


@triton.jit
def output_grad(cell: tl.constexpr, h, c, dd):
    return dd, tl.zeros_like(dd)


RNN = Cell(1, True, False, 0.0, TANH, IDENTITY, feed, step, output, step_bwd, output_bwd, output_grad)
