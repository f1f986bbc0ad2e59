"""Photos in a folder for each class, as ImageNet's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .images import DataError, Images

# Of ImageNet's photos.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, RESIZED = 224, 256 / 224  # a photo's shorter side is made so many times the side of what is cut from its middle
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
HALVES = {True: ("train",), False: ("val", "test")}


class Photos(Images):
    """The photos of a folder that has one for each class: ``FOLDER/train/CLASS/*.jpg`` and ``FOLDER/val/CLASS/*.jpg``.
    The classes are those of train."""

    def __init__(self, path: Path, train: bool, size: int | None = None) -> None:
        try:
            import PIL.Image
        except ImportError as error:
            raise DataError(f"{path}: photos are read by pillow, which is not installed; pip install pillow") from error
        self.open = PIL.Image.open
        self.broken = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)
        names = folders(half(path, True))
        super().__init__("imagenet" if len(names) == 1000 else path.name, names, 3, size or SIZE, MEAN, STD)
        within = half(path, train)
        others = {*folders(within)} ^ {*names}
        if others:
            raise DataError(
                f"{within}: expected a folder for each of the {len(names)} classes of {half(path, True)}, "
                f"but only one of both has {', '.join(sorted(others)[:4])}"
            )
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(names):
            found = sorted(file for file in (within / name).rglob("*") if file.suffix.lower() in ENDINGS)
            if not found:
                raise DataError(f"{within / name}: expected photos ({', '.join(ENDINGS)}), got none")
            self.files += [(file, label) for file in found]

    def __len__(self) -> int:
        return len(self.files)

    def label(self, i: int) -> int:
        return self.files[i][1]

    def image(self, i: int) -> Any:  # of pillow
        path = self.files[i][0]
        try:
            with self.open(path) as image:
                if image.mode.startswith(("I", "F")):  # which pillow would cut off at 255
                    raise ValueError(f"it has more than 8 bits a pixel, mode {image.mode}")
                return image.convert("RGB")
        except self.broken as error:
            raise DataError(f"{path}: expected a photo, but it cannot be read ({error}); remove or replace it") from (
                error
            )

    def photo(self, i: int) -> Tensor:
        return tensor_of(self.image(i))

    def pixels(self, i: int) -> Tensor:
        """Return what is in the middle of a photo, once its shorter side is a seventh longer than that."""
        image = self.image(i)
        short = round(self.size * RESIZED)
        w, h = (max(short, round(side * short / min(image.size))) for side in image.size)
        left, top = (w - self.size) // 2, (h - self.size) // 2
        return tensor_of(image.resize((w, h), resample=2).crop((left, top, left + self.size, top + self.size)))


def half(path: Path, train: bool) -> Path:
    """Return the folder of the photos to train with, or to test with."""
    found = [path / name for name in HALVES[train] if (path / name).is_dir()]
    if not found:
        raise DataError(
            f"{path}: expected a folder {' or '.join(HALVES[train])} in it, with one for each class, got none"
        )
    return found[0]


def folders(path: Path) -> list[str]:
    names = sorted(child.name for child in path.iterdir() if child.is_dir())
    if not names:
        raise DataError(f"{path}: expected a folder for each class in it, got none")
    return names


def tensor_of(image: Any) -> Tensor:
    """Return an image of pillow as bytes [3, H, W]."""
    w, h = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(h, w, 3).permute(2, 0, 1).contiguous()
