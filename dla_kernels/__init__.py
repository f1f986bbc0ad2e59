"""Fused kernels for Dynamic Layer Attention: see README.md, and ``python -m dla_kernels info``."""

from . import reference
from .cells import PAPER_DSU, RELEASED_DSU, Cell, Dense, Joint, Split, Weights
from .ops import gap, layer_update, refresh, rescale, scan

__version__ = "0.1.0"

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
