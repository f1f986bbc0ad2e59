"""Fused kernels for Dynamic Layer Attention: see README.md, and ``python -m dla_kernels info``."""

from . import reference
from .backends import BACKENDS
from .cells import PAPER_DSU, RELEASED_DSU, Cell, Dense, Joint, Split, Weights
from .ops import gap, layer_update, refresh, rescale, scan

__version__ = "0.1.0"

# Loaded now, since torch.compile could not trace the loading if the first call came from inside it.
_ = BACKENDS["cpu"].available

__all__ = [
    "PAPER_DSU",
    "RELEASED_DSU",
    "Cell",
    "Dense",
    "Joint",
    "Split",
    "Weights",
    "gap",
    "layer_update",
    "reference",
    "refresh",
    "rescale",
    "scan",
]
