"""Import torchvision and timm, also where torchvision is of another torch than this one.

From the package index torchvision comes with a library for CUDA, which does not load beside a torch without it. Its
Python files, transforms and networks among them, do without, but at their import they describe operators that only that
library declares. They are declared here in its place.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

# What torchvision/_meta_registrations.py describes before it looks whether the library has been loaded.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
declared: list[torch.library.Library] = []  # which take their operators with them


def import_other(name: str) -> Any:
    """Return a module of torchvision, or of one that imports it; raise ImportError where it is not installed."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if declared or "operator torchvision::" not in str(error):
            raise
    for half in [half for half in sys.modules if half.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[half]
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    declared.append(library)
    return importlib.import_module(name)
