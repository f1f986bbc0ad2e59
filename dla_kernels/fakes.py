"""The shapes of each operator's results, for torch.compile: the same for every backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cells import ALL_RULES, accumulate_dtype

_registered: set[str] = set()
_STATES = {cell.rule: cell.state_names for cell in ALL_RULES}


def register(namespace: str) -> None:
    """For the operators of ``csrc/bindings.cpp`` under this name."""
    if namespace in _registered:
        return
    _registered.add(namespace)

    def fake(op: str) -> Callable:
        return torch.library.register_fake(f"{namespace}::{op}")

    def rows(xs: list[Tensor]) -> Tensor:  # [T, B, C]
        B, C = xs[0].shape[:2]
        return xs[0].new_empty((len(xs), B, C), dtype=accumulate_dtype(xs[0].dtype))

    def like(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.empty_like(x) for x in tensors]

    def dense(tensors: list[Tensor]) -> list[Tensor]:
        return [x.new_empty(x.shape) for x in tensors]

    @fake("gap")
    def _(xs):
        return rows(xs)

    @fake("scan")
    def _(y, weights, state, rule):
        return [y.new_empty(y.shape) for _ in _STATES[rule]]

    @fake("scan_bwd")
    def _(dstates, y, weights, state, states, rule):
        return y.new_empty(y.shape), dense(weights), dense(state)

    @fake("refresh")
    def _(y, state, weights, rule):
        return y.new_empty(y.shape)

    @fake("refresh_bwd")
    def _(dd, y, state, weights, rule):
        return y.new_empty(y.shape), dense(state), dense(weights)

    @fake("rescale")
    def _(xs, d):
        return like(xs)

    @fake("rescale_")
    def _(xs, d):
        return None

    @fake("rescale_bwd")
    def _(dout, xs, d):
        return like(xs), d.new_empty(d.shape)

    @fake("layer_update")
    def _(xs, weights, state, rule):
        return like(xs), [rows(xs) for _ in _STATES[rule]], rows(xs)

    @fake("layer_update_")
    def _(xs, states, weights, state, rule):
        return None

    @fake("layer_update_bwd")
    def _(dout, dstates, xs, weights, state, y, states, rule):
        return like(xs), dense(weights), dense(state)

    def moments_of(o: Tensor, wanted: bool) -> list[Tensor]:
        return [o.new_empty((2, o.shape[1]), dtype=accumulate_dtype(o.dtype))] if wanted else []

    @fake("light_step")
    def _(maps, filters, weights, state, rule, heads, moments):
        y, o = rows(maps), torch.empty_like(maps[0])
        return o, [y.new_empty(y.shape[1:]) for _ in _STATES.get(rule, ())], y, moments_of(o, moments)

    @fake("light_step_bwd")
    def _(dout, dstates, maps, filters, weights, state, y, states, rule, heads):
        return like(maps), dense(filters), dense(weights), dense(state)

    @fake("depthwise")
    def _(x, v):
        return torch.empty_like(x), rows([x, x])

    @fake("depthwise_bwd")
    def _(dvalue, dy, x, v):
        return torch.empty_like(x), v.new_empty(v.shape)

    @fake("attend")
    def _(y, q, k, past, heads):
        M = past[0].shape[0] if past else 0
        return tuple(y.new_empty((M + 1, *y.shape)) for _ in range(3))

    @fake("attend_bwd")
    def _(dcoef, dkeys, dscale, y, q, k, past, heads):
        return y.new_empty(y.shape), q.new_empty(q.shape), k.new_empty(k.shape), dense(past)

    @fake("mix")
    def _(values, coef, moments):
        o = torch.empty_like(values[0])
        return o, moments_of(o, moments)

    @fake("mix_bwd")
    def _(dout, later, values, coef):
        return like(values), coef.new_empty(coef.shape)

    @fake("norm_add")
    def _(x, o, moments, gamma, beta, keep, eps, relu):
        return torch.empty_like(x)

    @fake("norm_add_bwd")
    def _(dout, o, moments, gamma, beta, keep, eps, relu, batch_moments):
        return torch.empty_like(o), gamma.new_empty(gamma.shape), beta.new_empty(beta.shape)
