"""The reference: every op in plain PyTorch, to be read beside ``docs/notation.md``.

It is differentiable any number of times and is the truth that each backend is tested against. Its
functions carry the public names and take the same arguments, less ``backend``.
"""

from .base_step import base_step
from .cells import step
from .gap import gap
from .layer_update import layer_update
from .light_step import light_step
from .refresh import refresh
from .rescale import rescale
from .scan import scan

__all__ = ["base_step", "gap", "layer_update", "light_step", "refresh", "rescale", "scan", "step"]
