"""Every kind of data is read as it is given away, and what is missing or cut short is one line."""

import os
import pickle
import shutil
import tarfile

import pytest
import torch

from dla_kernels.data import DataError, open_data, small

numpy = pytest.importorskip("numpy")


def pixels(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def write_cifar(folder, kind):
    """Write a CIFAR of few images as its authors do, and return the images of both halves, [N, 3, 32, 32]."""
    folder.mkdir(parents=True)
    classes, word, parts = {
        "cifar10": (10, "label", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]),
        "cifar100": (100, "fine_label", ["train", "test"]),
    }[kind]
    written = []
    for part in parts:
        images = pixels(4, 3072)
        content = {b"data": images.numpy(), f"{word}s".encode(): [0, 1, 2, classes - 1], b"filenames": [b"a.png"]}
        (folder / part).write_bytes(pickle.dumps(content, 2))
        written.append(images.view(-1, 3, 32, 32))
    meta = {f"{word}_names".encode(): [f"class {c}".encode() for c in range(classes)]}
    (folder / ("meta" if kind == "cifar100" else "batches.meta")).write_bytes(pickle.dumps(meta, 2))
    return torch.cat(written[:-1]), written[-1]


FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("given", ["inside", "above", "archive", "beside"])
def test_cifar_is_read_unpacked_and_in_its_archive(kind, given, tmp_path):
    inside = tmp_path / "unpacked" / FOLDERS[kind]
    written = dict(zip((True, False), write_cifar(inside, kind)))
    archive = tmp_path / "packed" / {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[kind]
    archive.parent.mkdir()
    (archive.parent / "other.tar.gz").write_bytes(b"is passed over")
    with tarfile.open(archive, "w:gz") as file:
        file.add(inside, FOLDERS[kind])
    where = {"inside": inside, "above": inside.parent, "archive": archive, "beside": archive.parent}[given]
    for train, images in written.items():
        read = open_data(str(where), train)
        assert (read.name, read.size, read.channels) == (kind, 32, 3)
        assert read.classes == {"cifar10": 10, "cifar100": 100}[kind]
        assert torch.equal(torch.stack([read.pixels(i) for i in range(len(read))]), images)
        assert read[3][1] == read.classes - 1 and read.names[1] == "class 1"


def test_of_two_data_sets_in_a_folder_neither_is_chosen(tmp_path):
    for kind, folder in FOLDERS.items():
        write_cifar(tmp_path / folder, kind)
    with pytest.raises(DataError, match=r"expected one data set, got .*cifar-10-batches-py, .*cifar-100-python; give"):
        open_data(str(tmp_path), True)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_archive_is_one_line(share, tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", "cifar10")
    whole, cut = tmp_path / "whole.tar.gz", tmp_path / "cut.tar.gz"
    with tarfile.open(whole, "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(DataError, match=r"cut.tar.gz: it cannot be read, perhaps it is truncated; fetch it again"):
        open_data(str(cut), False)


def test_a_batch_cut_short_is_one_line(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py", "cifar10")
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(batch.read_bytes()[:500])
    with pytest.raises(DataError, match="truncated"):
        open_data(str(tmp_path), False)
    batch.unlink()
    with pytest.raises(DataError, match="expected cifar10 with test_batch"):
        open_data(str(tmp_path), False)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_a_pickle_that_calls_anything_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-py", "cifar10")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": Harmful()}, 2))
    with pytest.raises(DataError, match="mkdir, which such data does not need"):
        open_data(str(tmp_path), False)
    assert not (tmp_path / "made").exists()


def test_stl_is_read_with_its_columns_and_labels_set_right(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = pixels(3, 3, 96, 96)
    for half in ("train", "test"):
        (folder / f"{half}_X.bin").write_bytes(images.transpose(2, 3).contiguous().numpy().tobytes())
        (folder / f"{half}_y.bin").write_bytes(bytes([1, 10, 2]))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    read = open_data(str(tmp_path), True)
    assert torch.equal(read.images, images)
    assert [read.label(i) for i in range(3)] == [0, 9, 1]
    assert open_data(str(tmp_path), True, size=48)[0][0].shape == (3, 48, 48)
    (folder / "train_X.bin").write_bytes(b"too short")
    with pytest.raises(DataError, match="truncated"):
        open_data(str(tmp_path), True)


def write_photos(root, classes=("cat", "dog")):
    image = pytest.importorskip("PIL.Image")
    for half in ("train", "val"):
        for name in classes:
            (root / half / name).mkdir(parents=True)
            for i in range(2):
                image.fromarray(pixels(40 + i, 60, 3).numpy()).save(root / half / name / f"{i}.png")


def test_photos_are_cut_from_the_middle(tmp_path):
    write_photos(tmp_path)
    read = open_data(str(tmp_path), True, size=28)
    assert (len(read), read.names, read.photo(1).shape) == (4, ["cat", "dog"], (3, 41, 60))
    assert [read.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert read[0][0].shape == (3, 28, 28)
    assert open_data(str(tmp_path), False).size == 224
    flat = pytest.importorskip("PIL.Image").new("RGB", (300, 200), (255, 0, 0))
    flat.paste((0, 0, 255), (0, 0, 45, 200))  # what is left of the middle
    flat.save(tmp_path / "train/cat/0.png")
    x = open_data(str(tmp_path), True, size=28).pixels(0)
    assert torch.equal(x, torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 28, 28))


def test_a_missing_class_is_one_line(tmp_path):
    write_photos(tmp_path)
    shutil.rmtree(tmp_path / "val" / "dog")
    with pytest.raises(DataError, match=r"val: expected a folder for each of the 2 classes .* dog"):
        open_data(str(tmp_path), False)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match="expected a folder val or test in it"):
        open_data(str(tmp_path), False)
    for file in (tmp_path / "train" / "cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"cat: expected photos .* got none"):
        open_data(str(tmp_path), True)


def test_a_photo_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    write_photos(tmp_path)
    photo = tmp_path / "train" / "cat" / "1.png"
    photo.write_bytes(photo.read_bytes()[:1000])
    read = open_data(str(tmp_path), True)
    with pytest.raises(DataError, match=r"1.png: expected a photo, but it cannot be read"):
        read[1]
    pil = pytest.importorskip("PIL.Image")
    pil.fromarray(numpy.full((9, 9), 40_000, "uint16")).save(photo)
    with pytest.raises(DataError, match=r"1.png: expected a photo, .* more than 8 bits a pixel, mode I"):
        read[1]
    pil.new("RGB", (100, 100)).save(photo)
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"1.png: expected a photo, .* exceeds limit"):
        read[1]


def write_arrays(path, images=12, side=8, **changes):
    x, y = pixels(images, side, side).numpy(), numpy.arange(images) % 3
    arrays = {"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6]}
    numpy.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


def test_arrays_are_read_with_and_without_channels(tmp_path):
    read = open_data(str(write_arrays(tmp_path / "a.npz")), True)
    assert (len(read), read.classes, read.channels, read.size, read[4][1]) == (12, 3, 1, 8, 1)
    x = torch.stack([read[i][0] for i in range(12)])
    assert abs(x.mean()) < 1e-5 and abs(x.std(correction=0) - 1) < 1e-5
    coloured = {f"x_{half}": pixels(6, 8, 8, 3).numpy() for half in ("train", "test")}
    labels = {f"y_{half}": numpy.arange(6)[:, None] for half in ("train", "test")}  # as CIFAR's are in Keras
    read = open_data(str(write_arrays(tmp_path / "b.npz", **coloured, **labels)), False)
    assert torch.equal(read.pixels(2), torch.from_numpy(coloured["x_test"][2]).permute(2, 0, 1))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"x_test": None}, "expected arrays x_train, y_train, x_test, y_test, got x_train, y_train, y_test"),
        ({"x_train": numpy.zeros((2, 8, 8))}, "expected images of bytes"),
        ({"y_train": numpy.zeros(12)}, "expected whole numbers for labels"),
        ({"y_train": numpy.zeros(3, int)}, "expected a label for each of 12 images, got"),
        ({f"x_{half}": numpy.zeros((12, 8, 9), "uint8") for half in ("train", "test")}, "expected square images"),
        ({"x_test": numpy.zeros((6, 9, 9), "uint8")}, r"like those to train with, .* = \[1, 8, 8\], got \[1, 9, 9\]"),
        ({"y_train": numpy.full(12, 2**32 - 1)}, "expected labels below 100000, got 4294967295"),
        ({"y_train": -numpy.ones(12, int)}, "labels from 0"),
        ({"x_train": numpy.zeros((0, 8, 8), "uint8"), "y_train": numpy.zeros(0, int)}, "at least one"),
    ],
)
def test_other_arrays_are_refused(changes, said, tmp_path):
    with pytest.raises(DataError, match=said):
        open_data(str(write_arrays(tmp_path / "a.npz", **changes)), True)


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected synthetic, digits or a path, but there is no nowhere"):
        open_data("nowhere", True)
    with pytest.raises(DataError, match="expected in this folder CIFAR-10"):
        open_data(str(tmp_path), True)
    (tmp_path / "it.txt").write_text("it")
    with pytest.raises(DataError, match="expected a folder, an archive"):
        open_data(str(tmp_path / "it.txt"), True)
    with (tmp_path / "one.npz").open("wb") as file:
        numpy.save(file, numpy.zeros(3))
    with pytest.raises(DataError, match=r"expected arrays x_train, .* got one that numpy.save has written"):
        open_data(str(tmp_path / "one.npz"), True)
    whole = write_arrays(tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        open_data(str(tmp_path / "a.npz"), True)


def test_made_images_are_the_same_every_time_and_their_classes_can_be_told():
    train, test = (open_data("synthetic", half, size=8) for half in (True, False))
    assert len(train) == small.NUMBERS[True] and train[0][0].shape == (3, 8, 8)
    assert torch.equal(open_data("synthetic", True, size=8).images, train.images)
    means = torch.stack([train.images[train.labels == c].double().mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(test.images.double().flatten(1), means).argmin(1)
    assert (nearest == test.labels).double().mean() > 0.9


def test_digits_are_divided_once_for_all():
    pytest.importorskip("sklearn")
    train, test = (open_data("digits", half) for half in (True, False))
    assert (len(train), len(test), train.classes, train[0][0].shape) == (1347, 450, 10, (1, 8, 8))
    assert torch.equal(train.mean, test.mean)
