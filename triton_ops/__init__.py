"""The operators of dla_kernels in Triton: no compiler at install time, any GPU that Triton knows.

This package knows torch and triton only. ``ops`` has the functions that csrc/bindings.cpp declares, registered with
torch under ``dla_triton::`` so that torch.compile sees one opaque call.
"""

from .register import FUNCTIONS, NAMESPACE, ops
from .tune import autotune

__all__ = ["FUNCTIONS", "NAMESPACE", "autotune", "ops"]
