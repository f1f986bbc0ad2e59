"""The shapes that operators' results have, for torch.compile: stated once, beside each op, for every backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cells import ALL_RULES, accumulate_dtype

# Operator -> a function that takes its arguments, by name, and returns results like its own with nothing in them.
_SHAPES: dict[str, Callable] = {}
_STATES = {cell.rule: len(cell.state_names) for cell in ALL_RULES}


def declare(op: str, shapes: Callable) -> None:
    _SHAPES[op] = lambda given: shapes(*given.values())


def declare_gradients(op: str, variables: Sequence[str], maps: Collection[str]) -> None:
    """Declare that an operator returns a gradient for each of its arguments ``variables``: for ``maps`` with their
    layout, for all others contiguous."""

    def gradient(name: str, given: Any) -> Any:
        if isinstance(given, list):
            return [gradient(name, x) for x in given]
        return torch.empty_like(given) if name in maps else given.new_empty(given.shape)

    _SHAPES[op] = lambda given: tuple(gradient(name, given[name]) for name in variables)


def register(namespace: str) -> None:
    """Tell torch the shapes of the operators of ``csrc/bindings.cpp`` under this name."""
    for op, shapes in _SHAPES.items():
        _register(namespace, op, shapes)
        if hasattr(getattr(torch.ops, namespace), f"{op}_"):  # which works in place
            _register(namespace, f"{op}_", lambda given: None)


def _register(namespace: str, op: str, shapes: Callable) -> None:
    named = [x.name for x in getattr(getattr(torch.ops, namespace), op).default._schema.arguments]
    torch.library.register_fake(f"{namespace}::{op}", lambda *given: shapes(dict(zip(named, given))))


# ---- what results are like ----


def like(xs: Sequence[Tensor]) -> list[Tensor]:
    """Return maps of the same layout."""
    return [torch.empty_like(x) for x in xs]


def rows(xs: Sequence[Tensor]) -> Tensor:
    """Return [T, B, C] for T maps."""
    B, C = xs[0].shape[:2]
    return xs[0].new_empty((len(xs), B, C), dtype=accumulate_dtype(xs[0].dtype))


def row(x: Tensor) -> Tensor:
    """Return [B, C] for a map."""
    return rows([x])[0]


def states(row: Tensor, rule: str) -> list[Tensor]:
    """Return what a cell saves, each like a row; nothing without a cell."""
    return [row.new_empty(row.shape) for _ in range(_STATES.get(rule, 0))]


def moments(o: Tensor, wanted: bool) -> list[Tensor]:
    return [o.new_empty((2, o.shape[1]), dtype=accumulate_dtype(o.dtype))] if wanted else []
