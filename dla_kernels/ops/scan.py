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
    filled_or_none,
    kernels,
    needs_grad,
    split_at,
    start_state,
    with_signature,
    without_autocast,
)
from .checks import check_cell, check_rows, check_state


def scan(
    y: Tensor,
    weights: Weights,
    *,
    cell: Cell = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """The context scan over layers (Eq. 5): ``c_t = Dyn(y_t, c_{t-1})`` for t = 1..T.

    y: [T, B, C].
    weights: Joint, Split or Dense, as ``cell.projection`` says.
    state: what the first layer starts from, each [B, C]: (h,) for rnn, (h, c) for lstm and dia,
        (c,) or (h, c) for dsu; None starts from zeros (``Cell.output`` says which h for a dsu).
    Returns the states of all layers, each [T, B, C], in float32 (float64 for float64):
        (h,) for rnn, (h, c) for lstm and dia, (c,) for dsu.
    """
    check_rows("y", y)
    _, B, C = y.shape
    check_cell(weights, cell, C, "y", y)
    if state is not None:
        check_state(state, cell, B, C, "y", y)
    chosen = select(backend, y.device)
    if chosen == REFERENCE:
        with without_autocast(y.device):
            return reference.scan(y, weights, cell=cell, state=state)
    (y,), w, start = accumulated([y], y), accumulated(weights, y), start_state(state, y)
    if needs_grad([y], w, start):
        return _Scan.apply(_Spec(chosen, cell, len(w), len(start)), y, *w, *start)
    return tuple(kernels(chosen).scan(y, w, start, cell.rule))


class _Spec(NamedTuple):
    """What is not a tensor, and how the flat list of tensors is cut: y, weights, state."""

    backend: str
    cell: Cell
    num_weights: int
    num_state: int

    @property
    def num_states(self) -> int:
        return len(self.cell.state_names)


class _Scan(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        (y,), weights, state = split_at(flat, 1, spec.num_weights, spec.num_state)
        return tuple(kernels(spec.backend).scan(y, weights, state, spec.cell.rule))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spec, *flat = inputs
        ctx.save_for_backward(*flat, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *dstates: Tensor | None) -> tuple:
        spec, saved = ctx.spec, ctx.saved_tensors
        incoming = filled_or_none(dstates, saved[-spec.num_states :])
        if not incoming:
            return (None,) * (1 + len(saved) - spec.num_states)
        run = _ScanBwd.apply if torch.is_grad_enabled() else _ScanBwd.forward
        return None, *run(spec, *saved, *incoming)


class _ScanBwd(Backward):
    @staticmethod
    def _split(spec: _Spec, flat: tuple) -> list[list[Tensor]]:
        return split_at(flat, 1, spec.num_weights, spec.num_state, spec.num_states, spec.num_states)

    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        (y,), weights, state, states, dstates = _ScanBwd._split(spec, flat)
        dy, dweights, dstate = kernels(spec.backend).scan_bwd(dstates, y, weights, state, states, spec.cell.rule)
        return (dy, *dweights, *dstate)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        spec = ctx.spec
        (y,), weights, state, states, dstates = _ScanBwd._split(spec, ctx.saved_tensors)

        def forward(y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            w, start = split_at(rest, len(weights), len(state))
            w = PROJECTIONS[spec.cell.projection](*w)
            return reference.scan(y, w, cell=spec.cell, state=tuple(start) or None)

        inputs = [y, *weights, *state]
        grads = double_backward(forward, inputs, dstates, ggs)
        to_inputs, to_dstates = split_at(grads, len(inputs), len(dstates))
        return None, *to_inputs, *([None] * len(states)), *to_dstates
