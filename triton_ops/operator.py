"""Functions of this package as torch operators: schemas are read off their signatures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.library import infer_schema

from .launch import INTERPRETED
from .tune import tuned

NAMESPACE = "dla_triton"
FUNCTIONS: list[Callable] = []

_library = torch.library.Library(NAMESPACE, "DEF")
ops = getattr(torch.ops, NAMESPACE)


def operator(*, writes: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Register a function with torch, under its name.

    writes: names of what it writes besides its results.
    """

    def register(function: Callable) -> Callable:
        _library.define(function.__name__ + infer_schema(function, mutates_args=writes))
        implementation = function if writes else tuned(function)
        _library.impl(function.__name__, implementation, "CPU" if INTERPRETED else "CUDA")
        FUNCTIONS.append(function)
        return function

    return register
