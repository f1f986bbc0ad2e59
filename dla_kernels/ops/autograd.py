"""Functions that ops share on their way into autograd."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import BACKENDS
from ..cells import accumulate_dtype

Tensors = tuple[Tensor, ...]


def with_signature(forward: Callable) -> Callable:
    """Keep the signature that ``Function.apply`` would otherwise work out anew at every call."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


def kernels(backend: str) -> Any:
    """Return the functions of ``csrc/bindings.cpp`` in that backend."""
    return BACKENDS[backend].ops


def needs_grad(*groups: Sequence[Tensor]) -> bool:
    # Forward-mode AD enters too, and is told there that it is not supported: past autograd, its tangents
    # would be dropped without a word.
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for group in groups for x in group)


def accumulated(tensors: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Return those tensors that there are in the dtype of all arithmetic, differentiably: gradients come back in the
    given dtype."""
    dtype = accumulate_dtype(like.dtype)
    return [x if x.dtype == dtype else x.to(dtype) for x in tensors if x is not None]


def start_state(state: Tensors | None, like: Tensor) -> list[Tensor]:
    """Return the kernels' [h], [h, c] or [c] from a state as users hold it; [] for the cell's own start."""
    return [] if state is None else accumulated(state, like)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which the arithmetic of y, states and d keeps its dtype; not every device knows autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def double_backward(
    forward: Callable[..., Tensors], inputs: Sequence[Tensor], grads: Sequence[Tensor], ggs: Sequence[Tensor | None]
) -> Tensors:
    """Return the gradients of a backward pass with respect to ``inputs`` and ``grads``.

    The backward pass is taken as the vector-Jacobian product of ``forward``, the reference; the
    kernels equal it, so they share its derivatives. ``ggs`` are the gradients that arrive at it.
    """

    def backward(*args: Tensor) -> Tensors:
        values, vjp = torch.func.vjp(forward, *args[: len(inputs)])  # type: ignore[misc]
        cotangents = args[len(inputs) :]
        return vjp(tuple(g.to(v.dtype) for g, v in zip(cotangents, values, strict=True)))

    with without_autocast(inputs[0].device):
        values, vjp = torch.func.vjp(backward, *inputs, *grads)  # type: ignore[misc]
        return vjp(tuple(torch.zeros_like(x) if gg is None else gg for gg, x in zip(ggs, values)))
