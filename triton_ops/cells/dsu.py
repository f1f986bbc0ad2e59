"""dsu: c' = sig(f) c + sig(i) tanh(g), h' = act(c'), output c' (paper) or sig(c') (released)"""

import triton
import triton.language as tl

from .activation import IDENTITY, RELU, SIGMOID, TANH
from .state import Cell, memory, memory_bwd


@triton.jit
def feed(cell: tl.constexpr, c):
    return cell.act.value(c)


@triton.jit
def step(cell: tl.constexpr, a0, a1, a2, a3, h, c):
    c = memory(a0, a1, a2, c)
    return cell.act.value(c), c


@triton.jit
def output(cell: tl.constexpr, h, c):
    return cell.out.value(c)


@triton.jit
def step_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dh, dc):
    new = memory(a0, a1, a2, c)
    da0, da1, da2, dc = memory_bwd(a0, a1, a2, c, dc + cell.act.grad(new, dh))
    return da0, da1, da2, da0, dc


@triton.jit
def output_bwd(cell: tl.constexpr, a0, a1, a2, a3, h, c, dd):
    """Return the gradients of the output's step. The output is read off c, so nothing arrives at h."""
    new = memory(a0, a1, a2, c)
    da0, da1, da2, dc = memory_bwd(a0, a1, a2, c, cell.out.grad(new, dd))
    return da0, da1, da2, da0, dc


@triton.jit
def output_grad(cell: tl.constexpr, h, c, dd):
    return tl.zeros_like(dd), cell.out.grad(c, dd)


ACTIVATIONS = {"sigmoid": SIGMOID, "tanh": TANH, "relu": RELU, "identity": IDENTITY}
OUTPUTS = {"context": IDENTITY, "sigmoid": SIGMOID}


def dsu(act: str, out: str) -> Cell:
    """Return the cell of these two activations. Without a state c = 0; the paper then feeds act(0), the released code
    feeds 0."""
    start_h = 0.5 if (act, out) == ("sigmoid", "context") else 0.0
    act, out = ACTIVATIONS[act], OUTPUTS[out]
    return Cell(3, False, True, start_h, act, out, feed, step, output, step_bwd, output_bwd, output_grad)
