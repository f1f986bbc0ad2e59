"""Squeeze-and-excitation of other libraries' networks, replaced by one op."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backends import BackendName, check_backend
from ..cells import Squeeze
from .hooks import is_watched
from .recalibration import ByOneOp

# What timm and torchvision call the parts of such a module: its two convolutions, and its two activations.
CONVOLUTIONS = (("fc1", "fc2"), ("conv_reduce", "conv_expand"))
ACTIVATIONS = ("act", "act1", "activation", "relu")
GATES = ("gate", "scale_activation", "sigmoid")


class FusedSE(ByOneOp):
    """Squeeze and excitation whose weights are those of another module, by the names that they have there."""

    kind = "se"

    def __init__(
        self, names: tuple[str, str], squeeze: nn.Conv2d, excite: nn.Conv2d, backend: BackendName | None
    ) -> None:
        super().__init__(squeeze.in_channels, backend)
        self.names = names
        for name, layer in zip(names, (squeeze, excite)):
            self.add_module(name, layer)

    def gate(self, x: Tensor) -> Tensor:
        squeeze, excite = (getattr(self, name) for name in self.names)
        y = self._means(x).to(squeeze.weight.dtype)[:, :, None, None]
        return torch.sigmoid(excite(squeeze(y).relu())).flatten(1)

    computed = gate

    @property
    def weights(self) -> Squeeze:
        """The parameters as the op takes them."""
        squeeze, excite = (getattr(self, name) for name in self.names)
        return Squeeze(squeeze.weight.flatten(1), squeeze.bias, excite.weight.flatten(1), excite.bias)


class Fused(NamedTuple):
    """What ``fuse`` did: names of the modules that it replaced; and of those that it left, with the reason."""

    replaced: list[str]
    left: dict[str, str]

    def __str__(self) -> str:
        told = [f"{len(self.replaced)} squeeze-and-excitation modules replaced, {len(self.left)} left"]
        return "\n".join([*told, *(f"  {name}: {why}" for name, why in self.left.items())])


def fuse(model: nn.Module, *, backend: BackendName | None = None) -> Fused:
    """Replace the squeeze-and-excitation modules of a timm or torchvision network in place, so that each is one op. The
    parameters stay the same, by the same names; outputs are equal to rounding.

    >>> class Squeezed(torch.nn.Module):  # as timm's SEModule
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc1, self.fc2 = torch.nn.Conv2d(64, 4, 1), torch.nn.Conv2d(4, 64, 1)
    ...         self.act, self.gate = torch.nn.ReLU(), torch.nn.Sigmoid()
    ...
    ...     def forward(self, x):
    ...         return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))
    >>> print(dla_kernels.fuse(torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), Squeezed())))
    1 squeeze-and-excitation modules replaced, 0 left
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_backend(backend)
    done, fused = Fused([], {}), dict[nn.Module, FusedSE]()
    if convolutions_of(model):
        done.left[""] = "expected a network with such modules in it, got one itself, which has no place to be put in"
    for path, parent in [*model.named_modules()]:
        for name, child in parent._modules.items():
            names = child is not None and convolutions_of(child)
            if not names:
                continue
            assert child is not None
            where = f"{path}.{name}" if path else name
            if child not in fused:
                if why := obstacle(child, names):
                    done.left[where] = why
                    continue
                fused[child] = FusedSE(names, getattr(child, names[0]), getattr(child, names[1]), backend).train(
                    child.training
                )
            setattr(parent, name, fused[child])
            done.replaced.append(where)
    return done


def fused_like(module: nn.Module, names: tuple[str, str], backend: BackendName | None) -> FusedSE:
    return FusedSE(names, getattr(module, names[0]), getattr(module, names[1]), backend)


def convolutions_of(module: nn.Module) -> tuple[str, str] | None:
    """Return the names of the two layers of a module that looks like squeeze-and-excitation; else None."""
    if part(module, GATES) is None:
        return None
    return next((names for names in CONVOLUTIONS if all(hasattr(module, x) for x in names)), None)


def part(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Return the module inside of the first of these names that there is."""
    return next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def obstacle(module: nn.Module, names: tuple[str, str]) -> str:
    """Return why the op does not compute what the module does; nothing where it does."""
    layers = [getattr(module, name) for name in names]
    for layer in layers:
        if type(layer) is not nn.Conv2d or layer.kernel_size != (1, 1) or layer.groups != 1:
            return f"expected 1x1 convolutions, got {layer}"
    if (act := part(module, ACTIVATIONS)) is None or type(act).__name__ != "ReLU":
        return f"expected ReLU between its layers, got {type(act).__name__}"
    if type(gate := part(module, GATES)).__name__ != "Sigmoid":
        return f"expected Sigmoid behind them, got {type(gate).__name__}"
    if not isinstance(getattr(module, "bn", nn.Identity()), nn.Identity):
        return "expected no norm between its layers, got one"
    if getattr(module, "add_maxpool", False):
        return "expected means alone, got maxima too"
    if is_watched(*module.modules()):
        return "expected no hooks, which the op would pass over, got some"
    of_layers = {f"{name}.{x}" for name, layer in zip(names, layers) for x in layer.state_dict()}
    if others := module.state_dict().keys() - of_layers:
        return f"expected its two convolutions to have all of its weights, got {', '.join(sorted(others))} too"
    return computes_otherwise(module, names)


def computes_otherwise(module: nn.Module, names: tuple[str, str]) -> str:
    """Return what a trial says against the op: a copy of the module, with other numbers, is to make the same of a map,
    whatever its ``forward`` does."""
    tried = copy.deepcopy(module).to_empty(device="cpu").float().eval()
    generator = torch.Generator().manual_seed(0)
    for p in tried.parameters():
        nn.init.normal_(p.requires_grad_(False), std=0.5, generator=generator)
    ours = fused_like(tried, names, "reference")
    x = torch.randn(2, ours.channels, 3, 5, generator=generator, device="cpu")
    try:
        made = tried(x.clone())  # it may write into it
    except Exception as error:
        return f"expected a module that scales a map, got {type(error).__name__}: {error}"
    if not isinstance(made, Tensor) or made.shape != x.shape or not torch.allclose(made, ours(x), rtol=1e-3, atol=1e-4):
        return "expected x sig(W2 relu(W1 mean(x))), got another result of a trial"
    return ""
