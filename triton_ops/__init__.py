"""The operators of dla_kernels in Triton: no compiler at install time, any GPU that Triton knows.

This package knows torch and triton only. ``ops`` has the functions that csrc/bindings.cpp declares, registered with
torch under ``dla_triton::`` so that torch.compile sees one opaque call. An op is a file here, which registers itself.
"""

import importlib
import pkgutil

from .operator import FUNCTIONS, NAMESPACE, ops
from .tune import autotune

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FUNCTIONS", "NAMESPACE", "autotune", "ops"]
