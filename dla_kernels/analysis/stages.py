"""The maps that a network's stages make, and the state in which it is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.stage import Stage


def stages_of(net: nn.Module) -> dict[str, nn.Module]:
    """Return the stages of one of our networks or of a converted one, by name."""
    found: dict[str, nn.Module] = {n: module for n, module in net.named_modules() if isinstance(module, Stage)}
    if not found:
        raise ValueError(
            f"net: expected a network of create_model or convert, whose stages are known, got a {type(net).__name__}; "
            "say which modules to look at"
        )
    return found


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Have a network in evaluation, whatever its modules were in, and are in afterwards."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def with_gradients() -> Iterator[None]:
    """Have gradients, wherever this is called from."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what these modules return, as it is, so that gradients with respect to it can be asked for."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        found[name] = output

    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def class_scores(net: nn.Module, x: Tensor) -> Tensor:
    """Return what a classifier makes of images: [B, classes]."""
    scores = net(x)
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"net: expected a classifier, which returns [B, classes], got {got}")
    return scores
