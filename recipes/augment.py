"""How images are changed before a network learns from them. What happens to an image follows from the seed, the epoch
and its number, whoever reads it, and in whatever order."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dla_kernels.data import Images

from .others import import_other
from .settings import Recipe, RecipeError


def generator(*what: object) -> torch.Generator:
    """Return random numbers of their own for each purpose, which its words name."""
    return torch.Generator().manual_seed(random.Random(repr(what)).getrandbits(63))


def torchvision_transforms(asked: str) -> Any:
    """Return torchvision's transforms; say what asked for them where there are none."""
    try:
        return import_other("torchvision.transforms.v2")
    except (ImportError, RuntimeError) as error:
        raise RecipeError(f"{asked}: it needs torchvision, which cannot be imported ({error})") from error


class Augmentation:
    """What a recipe does to images: by itself where a flip and a crop are all, else by torchvision."""

    def __init__(self, recipe: Recipe, images: Images, seed: int) -> None:
        self.recipe, self.images, self.seed, self.epoch = recipe, images, seed, -1
        self.of_bytes: Any = None
        self.of_numbers: Any = None
        asked = [key for key in ("resized_crop", "randaugment", "erasing") if getattr(recipe, key)]
        if not asked:
            return
        if recipe.randaugment and images.channels not in (1, 3):
            raise RecipeError(f"randaugment: expected images of 1 or 3 channels, got {images.channels}; set it to 0")
        v2 = torchvision_transforms(asked[0])
        crop = [v2.RandomResizedCrop(images.size, antialias=True)] if recipe.resized_crop else []
        crop += [v2.RandomCrop(images.size, padding=recipe.pad)] if recipe.pad else []
        flip = [v2.RandomHorizontalFlip()] if recipe.flip else []
        ops = [v2.RandAugment(magnitude=recipe.randaugment)] if recipe.randaugment else []
        self.of_bytes = v2.Compose([*crop, *flip, *ops, v2.Identity()])
        self.of_numbers = v2.RandomErasing(recipe.erasing, value="random") if recipe.erasing else v2.Identity()

    def batch(self, epoch: int, numbers: Tensor) -> Tensor:
        """Return images by their numbers, changed and normalised, [B, C, H, W]."""
        if epoch != self.epoch:  # what is drawn for all images of an epoch
            self.epoch = epoch
            self.draws = torch.randint(2**31, (len(self.images), 3), generator=generator("image", self.seed, epoch))
        draws = self.draws[numbers]
        if self.of_bytes is None:
            pixels = torch.stack([self.images.pixels(i) for i in numbers.tolist()])
            return self.images.normalised(cropped(pixels, draws, self.recipe.pad, self.recipe.flip))
        return torch.stack([self.changed(i, draw) for i, draw in zip(numbers.tolist(), draws[:, 0].tolist())])

    def changed(self, i: int, draw: int) -> Tensor:
        """Return one image by torchvision, which draws from torch's own random numbers."""
        pixels = self.images.photo(i) if self.recipe.resized_crop else self.images.pixels(i)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw)  # alone: torch.manual_seed seeds GPUs too
            return self.of_numbers(self.images.normalised(self.of_bytes(pixels)))


def cropped(pixels: Tensor, draws: Tensor, pad: int, flip: bool) -> Tensor:
    """Move each image by up to ``pad`` pixels, up or down, left or right, over black, and turn half of them round.

    pixels: [B, C, H, W].
    draws: whole numbers by which it is decided, [B, 3].
    """
    H, W = pixels.shape[2:]
    top, left, turned = draws[:, 0] % (2 * pad + 1), draws[:, 1] % (2 * pad + 1), draws[:, 2] % 2 == 1
    rows = top[:, None] + torch.arange(H)  # [B, H]
    columns = torch.arange(W).expand(len(pixels), W)
    if flip:
        columns = torch.where(turned[:, None], W - 1 - columns, columns)
    columns = left[:, None] + columns
    padded = F.pad(pixels, (pad, pad, pad, pad)).movedim(1, -1)  # [B, H, W, C]
    moved = padded[torch.arange(len(pixels))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1).contiguous()


def mixing(recipe: Recipe, classes: int) -> Any:
    """Return what mixes the images of a batch and their labels, or None."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    v2 = torchvision_transforms("mixup" if recipe.mixup else "cutmix")
    kinds = [v2.MixUp(alpha=recipe.mixup, num_classes=classes)] if recipe.mixup else []
    kinds += [v2.CutMix(alpha=recipe.cutmix, num_classes=classes)] if recipe.cutmix else []
    return v2.RandomChoice(kinds)
