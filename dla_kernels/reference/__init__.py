"""The reference: every op in plain PyTorch, to be read beside ``docs/notation.md``.

It is differentiable any number of times and is the truth that each backend is tested against. Its
functions carry the public names and take the same arguments, less ``backend``.
"""

from .cells import step
from .gap import gap
from .layer_update import layer_update
from .refresh import refresh
from .rescale import rescale
from .scan import scan

__all__ = ["gap", "layer_update", "refresh", "rescale", "scan", "step"]
