"""Images to train and to look with: CIFAR, STL-10, folders of photos, arrays, and such as need no download."""

from __future__ import annotations

from pathlib import Path

from . import archives, small
from .folder import HALVES, Photos
from .images import DataError, Images

__all__ = ["DataError", "Images", "open_data"]


def open_data(where: str, train: bool, *, size: int | None = None) -> Images:
    """Return the images to train with, or those to test with.

    where: ``synthetic``; ``digits``, scikit-learn's; or a path, whose content says what it is: the archive of CIFAR-10,
        CIFAR-100 or STL-10 (a folder with it, or with what is in it), a folder with ``train/CLASS`` and ``val/CLASS``,
        or a ``.npz`` as MNIST's is. Nothing is downloaded.
    size: the side that images are given; unless it is said, their own, and 224 for photos.

    >>> images = open_data("synthetic", train=True)
    >>> x, label = images[0]
    >>> x.shape, images.classes
    (torch.Size([3, 32, 32]), 10)
    """
    if where in ("synthetic", "digits"):
        return (small.synthetic if where == "synthetic" else small.digits)(train, size)
    path = Path(where).expanduser()
    if not path.exists():
        raise DataError(f"data: expected synthetic, digits or a path, but there is no {where}")
    if path.is_dir():
        if found := archives.find_unpacked(path):
            return archives.from_folder(*found, train, size)
        if any((path / name).is_dir() for names in HALVES.values() for name in names):
            return Photos(path, train, size)
        if archive := archives.find_archive(path):
            return archives.from_archive(archive, train, size)
        raise DataError(
            f"{where}: expected in this folder CIFAR-10, CIFAR-100 or STL-10, as an archive or unpacked, or folders "
            "train and val with one for each class, got none of these"
        )
    if path.suffix == ".npz":
        return small.arrays(path, train, size)
    if path.name.endswith(archives.ENDINGS):
        return archives.from_archive(path, train, size)
    raise DataError(
        f"{where}: expected a folder, an archive ({', '.join(archives.ENDINGS)}) or a .npz, got another file"
    )
