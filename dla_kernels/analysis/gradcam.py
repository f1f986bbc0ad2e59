"""Where a network looks, by Grad-CAM (Fig. 6 of the DIA paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stages import class_scores, evaluating, outputs_of, stages_of, with_gradients


def grad_cam(
    net: nn.Module, images: Tensor, classes: Tensor | None = None, *, module: nn.Module | None = None
) -> Tensor:
    """Return how much each pixel speaks for a class, from 0 to 1 in each image where any does:
    ``relu(sum over c of w_c A_c)`` with A the map of the last stage and ``w_c`` the mean over its pixels of the class
    score's gradient, enlarged to the image. The network is in evaluation meanwhile.

    images: [B, C, H, W].
    classes: [B]; those that the network chooses, unless given.
    module: whose map is A in place of the last stage's.
    Returns [B, H, W].
    """
    looked_at = [*stages_of(net).values()][-1] if module is None else module
    with evaluating(net), with_gradients(), outputs_of({"A": looked_at}) as maps:
        scores = class_scores(net, images.detach().clone().requires_grad_())
        if maps["A"].dim() != 4:
            raise ValueError(
                f"net: expected a network whose last stage makes maps [B, C, H, W], got {list(maps['A'].shape)}; "
                "module= says where else to look"
            )
        chosen = scores.argmax(1) if classes is None else classes.clone()
        (dA,) = torch.autograd.grad(scores.gather(1, chosen[:, None]).sum(), maps["A"])
    if not dA.isfinite().all():
        raise ValueError("net: expected finite gradients, got others; its training has diverged")
    A = maps["A"].detach()
    cam = (dA.mean((2, 3), keepdim=True) * A).sum(1, keepdim=True).relu().float()
    cam = F.interpolate(cam, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return cam / cam.amax((1, 2), keepdim=True).clamp_min(torch.finfo(cam.dtype).tiny)
