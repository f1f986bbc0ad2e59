"""CIFAR-10, CIFAR-100 and STL-10, in the archives that their authors give away or unpacked."""

from __future__ import annotations

import importlib.util
import io
import pickle
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from .images import DataError, Held


class Kind(NamedTuple):
    """A data set that comes as an archive."""

    name: str
    archive: str  # how its name begins
    folder: str  # inside of the archive
    train: tuple[str, ...]  # its files
    test: tuple[str, ...]
    meta: str  # the file with the names of classes
    labels: str  # CIFAR's word for them
    classes: int
    mean: tuple[float, ...]  # as the papers' code has them, for CIFAR-100 too
    std: tuple[float, ...]

    def files(self, train: bool) -> tuple[str, ...]:
        return (*(self.train if train else self.test), self.meta)


KINDS = (
    Kind(
        "cifar10",
        "cifar-10-python",
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "label",
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    ),
    Kind(
        "cifar100",
        "cifar-100-python",
        "cifar-100-python",
        ("train",),
        ("test",),
        "meta",
        "fine_label",
        100,
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    ),
    Kind(
        "stl10",
        "stl10_binary",
        "stl10_binary",
        ("train_X.bin", "train_y.bin"),
        ("test_X.bin", "test_y.bin"),
        "class_names.txt",
        "",
        10,
        (0.4467, 0.4398, 0.4066),
        (0.2603, 0.2566, 0.2713),
    ),
)
ENDINGS = (".tar.gz", ".tgz", ".tar")
# What reading a file raises that is cut short or damaged.
BROKEN = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zlib.error,
)


def find_unpacked(path: Path) -> tuple[Kind, Path] | None:
    """Return the one data set that is unpacked in a folder, or in the folder of its own that it has there, and where;
    None where nothing is."""
    found = [
        (kind, folder)
        for kind in KINDS
        for folder in (path, path / kind.folder)
        if (folder / kind.train[0]).is_file() and (folder / kind.meta).is_file()
    ]
    if len(found) > 1:
        several = ", ".join(str(folder) for _, folder in found)
        raise DataError(f"{path}: expected one data set, got {several}; give the folder of one")
    return found[0] if found else None


def find_archive(path: Path) -> Path | None:
    """Return the one archive of a known data set that lies in a folder."""
    names = tuple(name for kind in KINDS for name in (kind.archive, kind.folder))
    found = [file for file in sorted(path.iterdir()) if file.name.startswith(names) and file.name.endswith(ENDINGS)]
    if len(found) > 1:
        raise DataError(f"{path}: expected one archive, got {', '.join(file.name for file in found)}; give the file")
    return found[0] if found else None


def from_folder(kind: Kind, folder: Path, train: bool, size: int | None) -> Held:
    lacking = [name for name in kind.files(train) if not (folder / name).is_file()]
    if lacking:
        raise DataError(
            f"{folder}: expected {kind.name} with {', '.join(lacking)}, which is not there; unpack it again"
        )
    return decoded(kind, {name: (folder / name).read_bytes() for name in kind.files(train)}, folder, train, size)


def from_archive(path: Path, train: bool, size: int | None) -> Held:
    """Read an archive without unpacking it to the disk."""
    kind, files = None, {}
    with told(path), tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            kind = kind or next((kind for kind in KINDS if kind.folder == name.parent.name), None)
            if kind and member.isfile() and name.parent.name == kind.folder and name.name in kind.files(train):
                content = archive.extractfile(member)
                files[name.name] = content.read() if content else b""
                if len(files[name.name]) != member.size:
                    raise EOFError("its end is missing")
            if kind and files.keys() == {*kind.files(train)}:
                break
    if kind is None:
        raise DataError(f"{path}: expected an archive with {' or '.join(k.folder for k in KINDS)} in it, got none")
    lacking = [name for name in kind.files(train) if name not in files]
    if lacking:
        raise DataError(f"{path}: expected {', '.join(lacking)} in it, which is not there; fetch it again")
    return decoded(kind, files, path, train, size)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong with a file that is cut short what to do about it."""
    try:
        yield
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(f"{path}: it cannot be read, perhaps it is truncated; fetch it again ({error})") from error


def decoded(kind: Kind, files: dict[str, bytes], where: Path, train: bool, size: int | None) -> Held:
    with told(where):
        images, labels, names = (stl if kind.name == "stl10" else cifar)(kind, files, train)
        if len(names) != kind.classes:
            raise DataError(f"{where}: expected names of {kind.classes} classes, got {len(names)}")
    return Held(kind.name, names, images, labels, kind.mean, kind.std, size)


def cifar(kind: Kind, files: dict[str, bytes], train: bool) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    parts = [unpickled(files[name]) for name in (kind.train if train else kind.test)]
    images = torch.cat([torch.from_numpy(part[b"data"]).view(-1, 3, 32, 32) for part in parts])
    labels = torch.tensor([label for part in parts for label in part[f"{kind.labels}s".encode()]])
    return images, labels, [name.decode() for name in unpickled(files[kind.meta])[f"{kind.labels}_names".encode()]]


def stl(kind: Kind, files: dict[str, bytes], train: bool) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    pixels, labels = (torch.frombuffer(bytearray(files[name]), dtype=torch.uint8) for name in kind.files(train)[:2])
    images = pixels.view(-1, 3, 96, 96).transpose(2, 3).contiguous()  # they are written column by column
    return images, labels.long() - 1, files[kind.meta].decode().split()


class OnlyArrays(pickle.Unpickler):
    """Read CIFAR's files, which are pickles: of all that a pickle may call, they need arrays alone."""

    allowed: Collection[str] = ("_reconstruct", "_frombuffer", "ndarray", "dtype", "encode")

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("numpy", "_codecs") and name in self.allowed:
            if importlib.util.find_spec("numpy._core"):  # numpy.core's name from numpy 2 on
                module = module.replace("numpy.core", "numpy._core")
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which such data does not need")


def unpickled(content: bytes) -> dict[bytes, Any]:
    found = OnlyArrays(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(found, dict):
        raise ValueError(f"expected a dict, got {type(found).__name__}")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
