"""Fused kernels for Dynamic Layer Attention: see README.md, and ``python -m dla_kernels info``."""

from . import models, nn, reference
from .attention import Attention, BaseStage
from .backends import BACKENDS
from .cells import PAPER_DSU, RELEASED_DSU, Cell, Dense, Joint, Split, Weights
from .models import convert, create_model, list_models
from .ops import (
    attend,
    base_step,
    depthwise,
    gap,
    layer_update,
    light_step,
    mix,
    norm_add,
    refresh,
    rescale,
    scan,
)

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
    "Split",
    "Weights",
    "attend",
    "base_step",
    "convert",
    "create_model",
    "depthwise",
    "gap",
    "layer_update",
    "light_step",
    "list_models",
    "mix",
    "models",
    "nn",
    "norm_add",
    "reference",
    "refresh",
    "rescale",
    "scan",
]
