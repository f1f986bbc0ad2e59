"""The public functions, which check, choose a backend, and enter autograd only when a gradient is needed."""

from .attend import attend
from .base_step import base_step
from .depthwise import depthwise
from .gap import gap
from .layer_update import layer_update
from .light_step import light_step
from .mix import mix
from .norm_add import norm_add
from .recalibrate import recalibrate
from .refresh import refresh
from .rescale import rescale
from .scan import scan

__all__ = [
    "attend",
    "base_step",
    "depthwise",
    "gap",
    "layer_update",
    "light_step",
    "mix",
    "norm_add",
    "recalibrate",
    "refresh",
    "rescale",
    "scan",
]
