"""What users hang on modules, which only a call of the module runs."""

from __future__ import annotations

from torch import nn

KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_watched(*modules: nn.Module) -> bool:
    """Return whether one of these has hooks, such as pruning and the older weight norms hang on it, or a ``forward`` of
    its own beside its class's: an op that reads its weights would pass them over."""
    return any("forward" in vars(m) or any(getattr(m, kind, None) for kind in KINDS) for m in modules)
