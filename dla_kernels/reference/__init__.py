"""The reference, which is every op in plain PyTorch, to be read beside ``docs/notation.md``.

It is differentiable any number of times and is the truth that each backend is tested against. Its
functions carry the public names and take the same arguments, less ``backend``.
"""

from .attend import attend
from .base_step import base_step
from .cells import step
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
    "step",
]
