"""gate: c' = a, output sig(c'): what se and eca show. They remember nothing, and c' is nobody's state."""

import triton
import triton.language as tl

from .activation import IDENTITY, SIGMOID
from .state import Cell


@triton.jit
def feed(cell: tl.constexpr, c):
    return c


@triton.jit
def step(cell: tl.constexpr, a0, a1, a2, a3, h, c):
    return a0, a0


@triton.jit
def output(cell: tl.constexpr, h, c):
    return cell.out.value(c)


@triton.jit
def step_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dh, dc):
    return dc, dc, dc, dc, tl.zeros_like(dc)


@triton.jit
def output_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dd):
    da = cell.out.grad(a0, dd)
    return da, da, da, da, tl.zeros_like(dd)


@triton.jit
def output_grad(cell: tl.constexpr, h, c, dd):
    return tl.zeros_like(dd), cell.out.grad(c, dd)


GATE = Cell(1, False, True, 0.0, IDENTITY, SIGMOID, feed, step, output, step_bwd, output_bwd, output_grad)
