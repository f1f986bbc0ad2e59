"""What a cell is to the kernels, and the gated memory that LSTM, DIA and DSU share."""

from typing import Any, NamedTuple

import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it)

from .activation import Activation, sigmoid, tanh


class Cell(NamedTuple):
    """A pointwise rule. a0 .. a3 are the gate rows i, f, g, o (those from NG on repeat the first), ds the gradients
    of the new state. The functions are given the cell itself first, to look up its activations."""

    NG: int
    saves_h: bool
    saves_c: bool
    start_h: float  # the h that a cell of no state starts from
    act: Activation  # of c, towards h
    out: Activation  # of c, towards the output
    feed: Any  # (cell, c) -> h, where h is not saved
    step: Any  # (cell, a0, a1, a2, a3, h, c) -> h, c
    output: Any  # (cell, h, c) -> the refresh gate, or what else is shown
    step_bwd: Any  # (cell, a0, a1, a2, a3, h, c, dh, dc) -> da0, da1, da2, da3, dc
    output_bwd: Any  # (cell, a0, a1, a2, a3, h, c, dd) -> da0, da1, da2, da3, dc
    output_grad: Any  # (cell, h, c, dd) -> dh, dc, those of the state that is shown; nothing to an h not saved

    @property
    def cache_key(self) -> str:
        """Return what Triton is to know a compiled cell by: it does not look into the functions of a constant, and
        would serve one whose source has changed since."""
        functions = (*self[6:], *self.act, *self.out)
        return "-".join(map(str, (*self[:4], *(function.cache_key for function in functions))))


@triton.jit
def memory(i, f, g, c):
    """Return c' = sig(f) c + sig(i) tanh(g)."""
    return sigmoid(f) * c + sigmoid(i) * tanh(g)


@triton.jit
def memory_bwd(i, f, g, c, dc):
    """Return the gradients of i, f, g and c, from that of c'."""
    si, sf, tg = sigmoid(i), sigmoid(f), tanh(g)
    return dc * tg * si * (1.0 - si), dc * c * sf * (1.0 - sf), dc * si * (1.0 - tg * tg), dc * sf
