"""Modules that wrap the ops: cells, a stage's update at once, and attention inside a network, layer by layer."""

from .attention import DLABase, DLALight, MRLABase, MRLALight
from .cells import CellModule, DIACell, DSUCell, LSTMCell, RNNCell, make_cell
from .fuse import Fused, FusedSE, fuse
from .integration import LayerwiseIntegration
from .recalibration import CBAM, ECA, SE, SGE, SPA, SRM, Shared
from .tokens import DLABaseTokens, DLALightTokens, InStages, MRLABaseTokens, MRLALightTokens
from .update import ContextScan, LayerUpdate

__all__ = [
    "CBAM",
    "ECA",
    "SE",
    "SGE",
    "SPA",
    "SRM",
    "CellModule",
    "ContextScan",
    "DIACell",
    "DLABase",
    "DLABaseTokens",
    "DLALight",
    "DLALightTokens",
    "DSUCell",
    "Fused",
    "FusedSE",
    "InStages",
    "LSTMCell",
    "LayerUpdate",
    "LayerwiseIntegration",
    "MRLABase",
    "MRLABaseTokens",
    "MRLALight",
    "MRLALightTokens",
    "RNNCell",
    "Shared",
    "fuse",
    "make_cell",
]
