"""What every data set is here: images with labels, as bytes and normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


class DataError(ValueError):
    """Data that is not there, or not what it should be; the message is for those who gave the path."""


class Images(Dataset):
    """A data set whose items are (float tensor [C, H, W], normalised, and its label).

    name: which data set it is, as tables of results know it: ``cifar10``, ``digits``, ...
    names: of the classes.
    channels: C.
    size: the side of an image, H and W.
    mean, std: of each channel of bytes in 0 .. 1, by which images are normalised.
    """

    def __init__(
        self, name: str, names: Sequence[str], channels: int, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.name, self.names, self.channels, self.size = name, list(names), channels, size
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    @property
    def classes(self) -> int:
        return len(self.names)

    def __len__(self) -> int:
        raise NotImplementedError

    def label(self, i: int) -> int:
        raise NotImplementedError

    def pixels(self, i: int) -> Tensor:
        """Return an image as bytes, [C, size, size]."""
        raise NotImplementedError

    def photo(self, i: int) -> Tensor:
        """Return an image as bytes [C, H, W], as large as it was before it became ``pixels``."""
        return self.pixels(i)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return bytes [..., C, H, W] as the numbers that networks are given."""
        return (pixels.float() / 255 - self.mean) / self.std

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not 0 <= i < len(self):  # the end, for who iterates
            raise IndexError(f"i: expected one of {len(self)} images, got {i}")
        return self.normalised(self.pixels(i)), self.label(i)


class Held(Images):
    """Images that are in memory, bytes [N, C, H, W], with labels [N]."""

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[2] != images.shape[3] or not len(images):
            raise DataError(
                f"{name}: expected square images of bytes, at least one, [N, C, H, W], "
                f"got {list(images.shape)} of {images.dtype}"
            )
        if labels.shape != images.shape[:1]:
            raise DataError(f"{name}: expected a label for each of {len(images)} images, got {list(labels.shape)}")
        if int(labels.min()) < 0 or int(labels.max()) >= len(names):
            raise DataError(
                f"{name}: expected labels from 0 to {len(names) - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
        if size is not None and size != images.shape[-1]:
            resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
            images = resized.round().clamp(0, 255).byte()
        super().__init__(name, names, images.shape[1], images.shape[-1], mean, std)
        self.images, self.labels = images, labels.long()

    def __len__(self) -> int:
        return len(self.images)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def pixels(self, i: int) -> Tensor:
        return self.images[i]


def statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of bytes [N, C, H, W], in 0 .. 1."""
    total = torch.zeros(2, images.shape[1], dtype=torch.float64)  # of values, and of their squares
    for part in images.split(1024):
        values = part.double() / 255
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = total / (images.numel() // images.shape[1])
    return mean.tolist(), (square - mean.square()).clamp(min=1e-6).sqrt().tolist()
