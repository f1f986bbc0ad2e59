from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, Weights
from .autograd import (
    Backward,
    accumulated,
    double_backward,
    kernels,
    needs_grad,
    split_at,
    start_state,
    with_signature,
    without_autocast,
)
from .checks import check_cell, check_rows, check_state


def refresh(
    y: Tensor,
    state: tuple[Tensor, ...],
    weights: Weights,
    *,
    cell: Cell = PAPER_DSU,
    backend: str | None = None,
) -> Tensor:
    """The refresh gate (Eq. 6): ``d_t = Dyn(y_t, c_T)`` for all t at once, output only.

    y: [T, B, C].
    state: the last context, each [B, C]: (h,) for rnn, (h, c) for lstm and dia, (c,) or (h, c) for
        dsu; usually ``tuple(s[-1] for s in scan(...))``.
    weights: Joint, Split or Dense, as ``cell.projection`` says.
    Returns d [T, B, C], in float32 (float64 for float64).
    """
    check_rows("y", y)
    _, B, C = y.shape
    check_cell(weights, cell, C, "y", y)
    check_state(state, cell, B, C, "y", y)
    chosen = select(backend, y.device)
    if chosen == REFERENCE:
        with without_autocast(y.device):
            return reference.refresh(y, state, weights, cell=cell)
    (y,), w, last = accumulated([y], y), accumulated(weights, y), start_state(state, y)
    if needs_grad([y], w, last):
        return _Refresh.apply(_Spec(chosen, cell, len(w), len(last)), y, *last, *w)
    return kernels(chosen).refresh(y, last, w, cell.rule)


class _Spec(NamedTuple):
    """What is not a tensor, and how the flat list of tensors is cut: y, state, weights."""

    backend: str
    cell: Cell
    num_weights: int
    num_state: int


class _Refresh(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> Tensor:
        (y,), state, weights = split_at(flat, 1, spec.num_state, spec.num_weights)
        return kernels(spec.backend).refresh(y, state, weights, spec.cell.rule)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.spec, *flat = inputs
        ctx.save_for_backward(*flat)

    @staticmethod
    def backward(ctx: Any, dd: Tensor) -> tuple:
        run = _RefreshBwd.apply if torch.is_grad_enabled() else _RefreshBwd.forward
        return None, *run(ctx.spec, dd, *ctx.saved_tensors)


class _RefreshBwd(Backward):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, dd: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        (y,), state, weights = split_at(flat, 1, spec.num_state, spec.num_weights)
        dy, dstate, dweights = kernels(spec.backend).refresh_bwd(dd, y, state, weights, spec.cell.rule)
        return (dy, *dstate, *dweights)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        spec = ctx.spec
        dd, *inputs = ctx.saved_tensors

        def forward(y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            last, w = split_at(rest, spec.num_state, spec.num_weights)
            w = PROJECTIONS[spec.cell.projection](*w)
            return (reference.refresh(y, tuple(last), w, cell=spec.cell),)

        *to_inputs, to_dd = double_backward(forward, inputs, [dd], ggs)
        return None, to_dd, *to_inputs
