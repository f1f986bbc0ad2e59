from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, Weights, accumulate_dtype
from .autograd import (
    Backward,
    accumulated,
    double_backward,
    filled,
    filled_or_none,
    kernels,
    needs_grad,
    split_at,
    start_state,
    with_signature,
    without_autocast,
)
from .checks import check_cell, check_maps, check_state
from .inplace import check_inplace, mark_written


def layer_update(
    xs: Sequence[Tensor],
    weights: Weights,
    *,
    cell: Cell = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """One stage of dynamic layer attention (Eq. 4-6): pool, scan, refresh and rescale in one launch.

    xs: T maps [B, C, H, W] that share dtype, device, B and C; H and W may differ.
    weights: Joint, Split or Dense, as ``cell.projection`` says.
    state: what the first layer starts from, as in ``scan``.
    inplace: write the maps where they are; under ``torch.no_grad()`` only. If memory runs out on the way, it raises,
        and some samples are refreshed and others are not.
    Returns the T refreshed maps, each with the dtype and memory layout of its input, and the states
    of all layers as ``scan`` returns them.
    """
    check_maps(xs)
    B, C = xs[0].shape[:2]
    check_cell(weights, cell, C, "xs[0]", xs[0])
    if state is not None:
        check_state(state, cell, B, C, "xs[0]", xs[0])
    if inplace:
        check_inplace(xs)
    chosen = select(backend, xs[0].device)
    if chosen == REFERENCE:
        with without_autocast(xs[0].device):
            return reference.layer_update(xs, weights, cell=cell, state=state, inplace=inplace)
    w, start = accumulated(weights, xs[0]), start_state(state, xs[0])
    if inplace:
        dtype = accumulate_dtype(xs[0].dtype)
        states = [xs[0].new_empty((len(xs), B, C), dtype=dtype) for _ in cell.state_names]
        mark_written(xs)
        kernels(chosen).layer_update_(list(xs), states, w, start, cell.rule)
        return list(xs), tuple(states)
    if needs_grad(xs, w, start):
        spec = _Spec(chosen, cell, len(xs), len(w), len(start))
        outputs = _LayerUpdate.apply(spec, *xs, *w, *start)
        out, states, _ = split_at(outputs, len(xs), spec.num_states, 1)
        return out, tuple(states)
    out, states, _ = kernels(chosen).layer_update(list(xs), w, start, cell.rule)
    return out, tuple(states)


class _Spec(NamedTuple):
    """What is not a tensor, and how the flat list of tensors is cut: xs, weights, state."""

    backend: str
    cell: Cell
    T: int
    num_weights: int
    num_state: int

    @property
    def num_states(self) -> int:
        return len(self.cell.state_names)

    @property
    def num_inputs(self) -> int:
        return self.T + self.num_weights + self.num_state


class _LayerUpdate(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        xs, weights, state = split_at(flat, spec.T, spec.num_weights, spec.num_state)
        out, states, y = kernels(spec.backend).layer_update(xs, weights, state, spec.cell.rule)
        return (*out, *states, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spec, *flat = inputs
        *_, y = output
        ctx.mark_non_differentiable(y)
        ctx.save_for_backward(*flat, *output[ctx.spec.T :])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        spec, saved = ctx.spec, ctx.saved_tensors
        dout, dstates, _ = split_at(grads, spec.T, spec.num_states, 1)
        dstates = filled_or_none(dstates, saved[spec.num_inputs : -1])
        dout = filled(dout, saved[: spec.T])
        run = _LayerUpdateBwd.apply if torch.is_grad_enabled() else _LayerUpdateBwd.forward
        return None, *run(spec, *saved, *dout, *dstates)


class _LayerUpdateBwd(Backward):
    @staticmethod
    def _split(spec: _Spec, flat: Sequence[Tensor]) -> list[list[Tensor]]:
        known = spec.num_inputs + spec.num_states + 1 + spec.T
        return split_at(flat, spec.T, spec.num_weights, spec.num_state, spec.num_states, 1, spec.T, len(flat) - known)

    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        xs, weights, state, states, (y,), dout, dstates = _LayerUpdateBwd._split(spec, flat)
        dxs, dweights, dstate = kernels(spec.backend).layer_update_bwd(
            dout, dstates, xs, weights, state, y, states, spec.cell.rule
        )
        return (*dxs, *dweights, *dstate)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        spec = ctx.spec
        xs, weights, state, states, _, dout, dstates = _LayerUpdateBwd._split(spec, ctx.saved_tensors)

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            xs, w, start = split_at(inputs, spec.T, spec.num_weights, spec.num_state)
            w = PROJECTIONS[spec.cell.projection](*w)
            out, states = reference.layer_update(xs, w, cell=spec.cell, state=tuple(start) or None)
            return (*out, *states[: len(dstates)])

        inputs, grads = [*xs, *weights, *state], [*dout, *dstates]
        to_inputs, to_grads = split_at(double_backward(forward, inputs, grads, ggs), len(inputs), len(grads))
        # y and the states are functions of the inputs: the reference has differentiated through them.
        return None, *to_inputs, *([None] * (len(states) + 1)), *to_grads
