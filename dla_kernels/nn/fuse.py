"""Squeeze-and-excitation of other libraries' networks, with their means and their scaling through the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import BackendName, check_backend
from .recalibration import Recalibration

# What timm and torchvision call the parts of such a module: its two convolutions, and its two activations.
CONVOLUTIONS = (("fc1", "fc2"), ("conv_reduce", "conv_expand"))
ACTIVATIONS = ("act", "act1", "activation", "relu")
GATES = ("gate", "scale_activation", "sigmoid")


class FusedSE(Recalibration):
    """Squeeze and excitation whose weights are those of another module, by the names that they have there."""

    def __init__(
        self, names: tuple[str, str], squeeze: nn.Conv2d, excite: nn.Conv2d, backend: BackendName | None
    ) -> None:
        super().__init__(squeeze.in_channels, backend)
        self.names = names
        for name, layer in zip(names, (squeeze, excite)):
            self.add_module(name, layer)

    def gate(self, x: Tensor) -> Tensor:
        squeeze, excite = (getattr(self, name) for name in self.names)
        y = self._means(x).to(squeeze.weight.dtype)
        u = F.linear(y, squeeze.weight.flatten(1), squeeze.bias).relu()
        return torch.sigmoid(F.linear(u, excite.weight.flatten(1), excite.bias))


class Fused(NamedTuple):
    """What ``fuse`` did: names of the modules that it replaced; and of those that it left, with the reason."""

    replaced: list[str]
    left: dict[str, str]

    def __str__(self) -> str:
        told = [f"{len(self.replaced)} squeeze-and-excitation modules replaced, {len(self.left)} left"]
        return "\n".join([*told, *(f"  {name}: {why}" for name, why in self.left.items())])


def fuse(model: nn.Module, *, backend: BackendName | None = None) -> Fused:
    """Replace the squeeze-and-excitation modules of a timm or torchvision network in place, by ones that pool and scale
    through the ops. The parameters stay the same, by the same names; outputs are equal to rounding.

    >>> class Squeezed(torch.nn.Module):  # as timm's SEModule
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc1, self.fc2 = torch.nn.Conv2d(64, 4, 1), torch.nn.Conv2d(4, 64, 1)
    ...         self.act, self.gate = torch.nn.ReLU(), torch.nn.Sigmoid()
    >>> print(dla_kernels.fuse(torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), Squeezed())))
    1 squeeze-and-excitation modules replaced, 0 left
    """
    check_backend(backend)
    done = Fused([], {})
    for path, parent in [*model.named_modules()]:
        for name, child in [*parent.named_children()]:
            names = next((n for n in CONVOLUTIONS if all(hasattr(child, x) for x in n)), None)
            gate = part(child, GATES)
            if names is None or gate is None:
                continue
            where = f"{path}.{name}" if path else name
            squeeze, excite = (getattr(child, x) for x in names)
            if why := obstacle(child, squeeze, excite, gate):
                done.left[where] = why
                continue
            setattr(parent, name, FusedSE(names, squeeze, excite, backend).train(child.training))
            done.replaced.append(where)
    return done


def part(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Return the module inside of the first of these names that there is."""
    return next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def obstacle(module: nn.Module, squeeze: nn.Module, excite: nn.Module, gate: nn.Module) -> str:
    """Return why the op does not compute what the module does; nothing where it does."""
    for layer in (squeeze, excite):
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.groups != 1:
            return f"expected 1x1 convolutions, got {layer}"
    if (act := part(module, ACTIVATIONS)) is None or type(act).__name__ != "ReLU":
        return f"expected ReLU between its layers, got {type(act).__name__}"
    if type(gate).__name__ != "Sigmoid":
        return f"expected Sigmoid behind them, got {type(gate).__name__}"
    if not isinstance(getattr(module, "bn", nn.Identity()), nn.Identity):
        return "expected no norm between its layers, got one"
    if getattr(module, "add_maxpool", False):
        return "expected means alone, got maxima too"
    return ""
