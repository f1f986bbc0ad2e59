"""Images that need no download: scikit-learn's digits, arrays of a file, and made ones."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import DataError, Held, statistics

MOST_CLASSES = 100_000  # of arrays: more are labels that went wrong
CLASSES, SIDE, NUMBERS = 10, 32, {True: 128, False: 64}  # of made images


def synthetic(train: bool, size: int | None = None) -> Held:
    """Return images [3, size, size] of ten classes, each of another colour and pattern under noise: a network that
    learns tells them apart, one that does not has 10 % right. They are the same on every call."""
    side, number = SIDE if size is None else size, NUMBERS[train]
    if side < 1:
        raise DataError(f"size: expected at least 1, got {side}")
    shared = torch.Generator().manual_seed(0)  # the classes, of both halves
    own = torch.Generator().manual_seed(1 + train)
    patterns = F.interpolate(torch.rand(CLASSES, 3, 4, 4, generator=shared), (side, side), mode="bilinear")
    labels = torch.arange(number) % CLASSES
    bright = 0.6 + 0.4 * torch.rand(number, 1, 1, 1, generator=own)
    noise = 0.15 * torch.randn(number, 3, side, side, generator=own)
    images = ((patterns[labels] * bright + noise).clamp(0, 1) * 255).round().byte()
    return Held("synthetic", [str(c) for c in range(CLASSES)], images, labels, [0.4] * 3, [0.25] * 3)


def digits(train: bool, size: int | None = None) -> Held:
    """Return scikit-learn's handwritten digits [1, 8, 8]: 1347 to train with, 450 to test with."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError("digits: they come with scikit-learn, which is not installed; pip install scikit-learn") from (
            error
        )
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    seen, unseen = (torch.from_numpy(part).view(-1, 1, 8, 8).mul(255 / 16).round().byte() for part in parts[:2])
    wanted, own = (seen, parts[2]) if train else (unseen, parts[3])
    return Held("digits", [str(c) for c in range(10)], wanted, torch.from_numpy(own), *statistics(seen), size)


def arrays(path: Path, train: bool, size: int | None = None) -> Held:
    """Return the images of a file as MNIST's is: x_train, y_train, x_test and y_test, images [N, H, W] or [N, H, W, C]
    of bytes."""
    import numpy

    expected = ("x_train", "y_train", "x_test", "y_test")
    try:
        file = numpy.load(path, allow_pickle=False)
        if isinstance(file, numpy.ndarray):
            raise DataError(f"{path}: expected arrays {', '.join(expected)}, got one that numpy.save has written")
        with file:
            lacking = [key for key in expected if key not in file]
            if lacking:
                raise DataError(f"{path}: expected arrays {', '.join(expected)}, got {', '.join(file) or 'none'}")
            x, y, x_test, y_test = (file[key] for key in expected)
    except DataError:
        raise
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: it cannot be read, perhaps it is truncated; fetch it again ({error})") from error
    seen, unseen = bytes_of(x, path), bytes_of(x_test, path)
    if seen.shape[1:] != unseen.shape[1:]:
        raise DataError(
            f"{path}: expected images to test with like those to train with, [C, H, W] = {list(seen.shape[1:])}, got "
            f"{list(unseen.shape[1:])}"
        )
    wanted, labels = (seen, y) if train else (unseen, y_test)
    if not all(part.dtype.kind in "iu" for part in (y, y_test)):
        raise DataError(
            f"{path}: expected whole numbers for labels, got {y.dtype} and {y_test.dtype}, {y.size} of them"
        )
    classes = int(y.max(initial=0)) + 1
    if classes > MOST_CLASSES:
        raise DataError(f"{path}: expected labels below {MOST_CLASSES}, got {classes - 1}")
    names = [str(c) for c in range(classes)]
    labels = torch.from_numpy(labels.reshape(-1).astype("int64"))
    return Held(path.stem, names, wanted, labels, *statistics(seen), size)


def bytes_of(images: Any, path: Path) -> Tensor:
    """Return an array of images as bytes [N, C, H, W]."""
    if images.dtype != "uint8" or images.ndim not in (3, 4) or not len(images):
        raise DataError(
            f"{path}: expected images of bytes (uint8), at least one, [N, H, W] or [N, H, W, C], got {images.dtype} "
            f"{list(images.shape)}"
        )
    found = torch.from_numpy(images)
    return (found[:, None] if found.dim() == 3 else found.permute(0, 3, 1, 2)).contiguous()
