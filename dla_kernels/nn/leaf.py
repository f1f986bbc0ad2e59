"""Modules that torch.fx sees as one node each."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import nn
from torch.fx import Proxy, Tracer

Forward = TypeVar("Forward", bound=Callable[..., Any])


def leaf(forward: Forward) -> Forward:
    """Make a ``forward`` that looks into its tensors, as a trace does not allow, one call of its module in the trace.
    Tracers ask of torch's own modules alone whether they should look inside."""

    @wraps(forward)
    def traceable(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, (list, tuple)) and given:  # maps, or a state
                given = given[0]
            if isinstance(given, Proxy):
                tracer = cast(Tracer, given.tracer)
                return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)
        return forward(module, *args, **kwargs)

    return cast(Forward, traceable)
