"""The optimiser of a recipe, the groups of parameters that it decays differently, and its rate over the epochs."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from .others import import_other
from .settings import Recipe, RecipeError

ATTENTION = re.compile(r"(^|\.)(attention|recalibrate)\.")  # in names of parameters of our networks


def groups_of(net: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the parameters that are trained, by their weight decay."""
    groups: dict[float, list[nn.Parameter]] = {}
    tokens = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    for name, parameter in net.named_parameters():
        decay = recipe.weight_decay
        if recipe.attention_weight_decay is not None and ATTENTION.search(name):
            decay = recipe.attention_weight_decay
        if recipe.bias_weight_decay is not None and (parameter.dim() < 2 or name in tokens):
            decay = recipe.bias_weight_decay
        if parameter.requires_grad:
            groups.setdefault(decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def optimizer_of(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimiser; one that cannot be made is one line."""
    try:
        return made(groups_of(net, recipe), recipe)
    except RecipeError:
        raise
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"optimizer: expected sgd, adamw or a name that timm knows, but {recipe.optimizer} cannot be made ({error})"
        ) from error


def made(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr)
    try:
        create_optimizer_v2 = import_other("timm.optim").create_optimizer_v2
    except (ImportError, RuntimeError) as error:
        raise RecipeError(
            f"optimizer: expected sgd or adamw, or a name that timm knows; it cannot be imported ({error})"
        ) from error
    return create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.lr, momentum=recipe.momentum)


def rate(recipe: Recipe, epoch: float) -> float:
    """Return by what the learning rate is multiplied when so many epochs are done, a part of one included."""
    if epoch < recipe.warmup:
        return max(epoch, 1e-3) / recipe.warmup
    if recipe.schedule == "cosine":
        left = (epoch - recipe.warmup) / max(recipe.epochs - recipe.warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(left, 1.0)))
    return recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)


def schedule_of(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return what sets the rate before each step, of an epoch that has so many."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(recipe, step / steps))
