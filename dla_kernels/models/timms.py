"""Our networks among timm's, by the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .registry import Network, create_model, list_models

__all__: list[str] = []  # timm adds the names that it has taken

# What timm's create_model and its training script tell every network, and means nothing to ours.
UNUSED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "drop_rate", "scriptable", "checkpoint_path")


def entrypoint(name: str) -> Callable[..., Network]:
    """Return the function from which timm makes a network."""

    def make(pretrained: bool = False, **options: Any) -> Network:
        for option in UNUSED:
            if options.pop(option, None) and option == "drop_rate":
                raise ValueError("drop_rate: expected 0, these networks have no dropout; drop_path_rate is there")
        net = create_model(name, pretrained=pretrained, **options)
        if getattr(net, "features_only", False):
            from timm.models import FeatureInfo

            net.feature_info = FeatureInfo(net.feature_info, tuple(net.out_indices))
        return net

    make.__name__ = make.__qualname__ = name
    make.__module__ = __name__
    make.__doc__ = f"``dla_kernels.create_model({name!r}, ...)``"
    return make


def register_timm() -> list[str]:
    """Make our networks known to ``timm.create_model``, and return their names. Where timm has a network of that name,
    as it has ``resnet50``, its own stays.

    >>> import timm
    >>> "dla_light_resnet50" in register_timm()
    True
    >>> net = timm.create_model("dla_light_resnet50", num_classes=10)
    """
    try:
        from timm.models import is_model, register_model
    except ImportError as error:
        raise ImportError("register_timm: timm is not installed; pip install timm") from error
    names = [name for name in list_models() if not is_model(name) or name in __all__]
    for name in names:
        if name not in __all__:
            register_model(entrypoint(name))
    return names
