"""The public functions: check, choose a backend, enter autograd only when a gradient is needed."""

from .gap import gap
from .layer_update import layer_update
from .refresh import refresh
from .rescale import rescale
from .scan import scan

__all__ = ["gap", "layer_update", "refresh", "rescale", "scan"]
