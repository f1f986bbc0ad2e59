"""Fused kernels for Dynamic Layer Attention: see README.md, and ``python -m dla_kernels info``."""

from . import analysis, models, nn, ops, reference
from .attention import Attention, BaseStage, Scores
from .backends import BACKENDS
from .cells import PAPER_DSU, RELEASED_DSU, Cell, Dense, Joint, Light, Split, Squeeze, Taps, Weights
from .models import convert, create_model, list_models, register_timm
from .nn import fuse
from .ops import *  # noqa: F403 - only ops/__init__.py lists the ops
from .register import register_cell

__version__ = "0.1.0"

# Loaded now, since torch.compile could not trace the loading if the first call came from inside it.
_ = BACKENDS["cpu"].available

__all__ = [
    "PAPER_DSU",
    "RELEASED_DSU",
    "Attention",
    "BaseStage",
    "Cell",
    "Dense",
    "Joint",
    "Light",
    "Scores",
    "Split",
    "Squeeze",
    "Taps",
    "Weights",
    "analysis",
    "convert",
    "create_model",
    "fuse",
    "list_models",
    "models",
    "nn",
    "reference",
    "register_cell",
    "register_timm",
]
__all__ += ops.__all__
