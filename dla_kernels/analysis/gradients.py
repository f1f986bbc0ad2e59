"""How gradients are distributed at the ends of stages (Fig. 9 of the DIA paper)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stages import class_scores, evaluating, outputs_of, stages_of, with_gradients


def gradients(
    net: nn.Module, images: Tensor, labels: Tensor, *, modules: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """Return the gradient of the cross-entropy, summed over samples, with respect to the map that each stage returns:
    [B, C, H, W] each. The network is in evaluation meanwhile, and its parameters' gradients stay as they are.

    images, labels: [B, C, H, W] and [B].
    modules: to look at in place of stages, by name.
    """
    with evaluating(net), with_gradients(), outputs_of(modules or stages_of(net)) as maps:
        x = images.detach().clone().requires_grad_()  # so that frozen stages have gradients too
        loss = F.cross_entropy(class_scores(net, x), labels.clone(), reduction="sum")
        return dict(zip(maps, torch.autograd.grad(loss, list(maps.values()))))


def distribution(values: Tensor, limit: float, bins: int = 60) -> Tensor:
    """Return how many percent of all values are in each of equal pieces of -limit .. limit, [bins]. Values beyond are
    in none."""
    if not values.isfinite().all():
        raise ValueError("gradients: expected finite numbers, got others; the network that they come from has diverged")
    return torch.histc(values.detach().double().flatten().cpu(), bins, -limit, limit) * (100 / values.numel())
