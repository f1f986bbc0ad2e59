from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..attention import Attention
from ..backends import REFERENCE, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, Weights
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
from .checks import check_alike, check_attention, check_cell, check_state, check_weight


def light_step(
    x: Tensor,
    o_prev: Tensor | None,
    attention: Attention,
    lam: Tensor,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    e: Tensor | None = None,
    moments: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...] | None, Tensor | None]:
    """One layer of DLA-L inside a network (Eq. 3), of MRLA-L without weights: one launch.

    ``o = lam o_prev' + sig(q . k / sqrt(D)) dwconv(x; v)``, where ``o_prev' = o_prev d + dwconv(o_prev; e)`` is
    o_prev refreshed with the state after x.

    x: the layer's map [B, C, H, W].
    o_prev: the layer before's, of the same shape and dtype; None for the first of a stage.
    attention: the layer's filters q, k [K] and v [C, 1, 3, 3].
    lam: [C].
    weights: of the cell, as ``cell.projection`` says; None for MRLA, which has none.
    heads: G, a divisor of C.
    state: the cell's before x, as in ``scan``.
    e: the refresh convolution [C, 1, 3, 3] of the published code; the paper has none.
    Returns o, a map like x; the new state, each [B, C], None without weights; and with ``moments`` mean and biased
    variance of o per channel, [2, C], which ``norm_add`` takes and which are constants to autograd, else None.
    """
    maps = {"x": x} if o_prev is None else {"x": x, "o_prev": o_prev}
    check_alike(maps)
    check_attention(attention, heads, x)
    B, C = x.shape[:2]
    check_weight("lam", lam, (C,), "x", x)
    if e is not None:
        check_weight("e", e, (C, 1, 3, 3), "x", x)
    if weights is not None:
        check_cell(weights, cell, C, "x", x)
        if state is not None:
            check_state(state, cell, B, C, "x", x)
    elif state is not None:
        raise ValueError("state: expected None without weights, got a state; pass the cell's weights too")
    chosen = select(backend, x.device)
    if chosen == REFERENCE:
        with without_autocast(x.device):
            return reference.light_step(
                x, o_prev, attention, lam, weights, heads=heads, cell=cell, state=state, e=e, moments=moments
            )
    filters = accumulated([*attention, lam, *([] if e is None else [e])], x)
    w, start = accumulated(weights or (), x), start_state(state, x)
    spec = _Spec(chosen, cell if weights else None, heads, moments, len(maps), len(filters), len(w), len(start))
    if needs_grad(list(maps.values()), filters, w, start):
        o, *rest = _LightStep.apply(spec, *maps.values(), *filters, *w, *start)
        states, _, of_o = split_at(rest, spec.num_states, 1, int(moments))
    else:
        o, states, _, of_o = _run(spec, list(maps.values()), filters, w, start)
    return o, tuple(states) if weights else None, of_o[0] if moments else None


class _Spec(NamedTuple):
    """What is not a tensor, and how the flat list of tensors is cut: maps, filters, weights, state."""

    backend: str
    cell: Cell | None
    heads: int
    moments: bool
    num_maps: int
    num_filters: int
    num_weights: int
    num_state: int

    @property
    def rule(self) -> str:
        return self.cell.rule if self.cell else ""

    @property
    def num_states(self) -> int:
        return len(self.cell.state_names) if self.cell else 0

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.num_maps, self.num_filters, self.num_weights, self.num_state


def _run(spec: _Spec, maps: list[Tensor], filters: list[Tensor], weights: list[Tensor], state: list[Tensor]) -> Any:
    return kernels(spec.backend).light_step(maps, filters, weights, state, spec.rule, spec.heads, spec.moments)


class _LightStep(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        o, states, y, of_o = _run(spec, *split_at(flat, *spec.inputs))
        return (o, *states, y, *of_o)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spec, *flat = inputs
        states, constants = split_at(output[1:], ctx.spec.num_states, len(output) - 1 - ctx.spec.num_states)
        ctx.mark_non_differentiable(*constants)
        ctx.save_for_backward(*flat, *states, constants[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, *grads: Tensor | None) -> tuple:
        spec, saved = ctx.spec, ctx.saved_tensors
        states = saved[sum(spec.inputs) : -1]
        dstates = filled_or_none(grads[: spec.num_states], states)
        (do,) = filled([do], saved[:1])
        run = _LightStepBwd.apply if torch.is_grad_enabled() else _LightStepBwd.forward
        return None, *run(spec, *saved, do, *dstates)


class _LightStepBwd(Backward):
    @staticmethod
    def _split(spec: _Spec, flat: Sequence[Tensor]) -> list[list[Tensor]]:
        known = sum(spec.inputs) + spec.num_states + 2
        return split_at(flat, *spec.inputs, spec.num_states, 1, 1, len(flat) - known)

    @staticmethod
    @with_signature
    def forward(spec: _Spec, *flat: Tensor) -> tuple[Tensor, ...]:
        maps, filters, weights, state, states, (y,), (do,), dstates = _LightStepBwd._split(spec, flat)
        grads = kernels(spec.backend).light_step_bwd(
            do, dstates, maps, filters, weights, state, y, states, spec.rule, spec.heads
        )
        return tuple(grad for group in grads for grad in group)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        spec = ctx.spec
        maps, filters, weights, state, states, _, do, dstates = _LightStepBwd._split(spec, ctx.saved_tensors)

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            maps, (q, k, v, lam, *e), w, start = split_at(inputs, *spec.inputs)
            x, *before = maps
            o, new_state, _ = reference.light_step(
                x,
                before[0] if before else None,
                Attention(q, k, v),
                lam,
                PROJECTIONS[spec.cell.projection](*w) if spec.cell else None,
                heads=spec.heads,
                cell=spec.cell or PAPER_DSU,
                state=tuple(start) or None,
                e=e[0] if e else None,
            )
            return (o, *(new_state or ())[: len(dstates)])

        inputs, grads = [*maps, *filters, *weights, *state], [*do, *dstates]
        to_inputs, to_grads = split_at(double_backward(forward, inputs, grads, ggs), len(inputs), len(grads))
        # y and the states are functions of the inputs: the reference has differentiated through them.
        return None, *to_inputs, *([None] * (len(states) + 1)), *to_grads
