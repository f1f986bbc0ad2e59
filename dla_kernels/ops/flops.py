"""How many floating-point operations ``torch.utils.flop_counter.FlopCounterMode`` counts for an operator.

They are those that it counts for the op in plain PyTorch: products and convolutions, a multiplication and an addition
being two. A backward pass has twice as many, since each product has two gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]

# Operator -> a function that takes the shapes of some of its arguments, by name.
_FORMULAS: dict[str, Callable[..., int]] = {}


def declare(op: str, formula: Callable[..., int]) -> None:
    _FORMULAS[op] = formula
    _FORMULAS[f"{op}_"] = formula
    _FORMULAS[f"{op}_bwd"] = lambda **given: 2 * formula(**given)
    _FORMULAS[f"{op}_bwd"].__signature__ = inspect.signature(formula)  # type: ignore[attr-defined]


def register(namespace: str) -> None:
    """Tell torch the formulas of the operators of ``csrc/bindings.cpp`` under this name."""
    for op, formula in _FORMULAS.items():
        if hasattr(getattr(torch.ops, namespace), op):
            _register(getattr(getattr(torch.ops, namespace), op), formula)


def _register(operator: Any, formula: Callable[..., int]) -> None:
    named = [x.name for x in operator.default._schema.arguments]
    asked = inspect.signature(formula).parameters

    def counted(*given: Any, **_: Any) -> int:
        return formula(**{name: shapes for name, shapes in zip(named, given) if name in asked})

    register_flop_formula(operator)(counted)


# ---- parts of formulas ----


def projection(rows: int, weights: Iterable[Shape]) -> int:
    """Return what it takes to project so many rows by all of a cell's weights."""
    return 2 * rows * sum(prod(w) for w in weights if len(w) == 2)


def across_channels(y: Shape, taps: Shape) -> int:
    """Return what a filter [K] over the channels of y [B, C] takes."""
    return 2 * prod(y) * taps[0]


def convolution(x: Shape) -> int:
    """Return what a 3x3 filter on each channel of x [B, C, H, W] takes."""
    return 2 * 9 * prod(x)
