"""Which images a step sees, and who reads them.

A step's images are the next ``batch`` of the epoch's order; they are divided among the processes, and each divides its
own into the parts that it accumulates. So two processes, or one with two parts, see the same parts. An epoch's last
images are a smaller batch, unless they are less than two for each part, which norms need, or the recipe drops them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dla_kernels.data import DataError, Images

from .augment import Augmentation, generator
from .settings import Recipe, RecipeError
from .team import Team


def steps_of(recipe: Recipe, images: int, world: int) -> int:
    """Return how many steps an epoch has."""
    parts = world * recipe.accumulate
    if recipe.batch % parts:
        raise RecipeError(
            f"batch: expected a multiple of {parts} ({world} processes, accumulate = {recipe.accumulate}), "
            f"got {recipe.batch}"
        )
    full, left = divmod(images, recipe.batch)
    steps = full + (left >= 2 * parts and not recipe.drop_last)
    if steps == 0:
        raise RecipeError(f"batch: expected at most {images}, which is how many images there are, got {recipe.batch}")
    return steps


def order_of(images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(images, generator=generator("order", seed, epoch))


class Reader(Dataset):
    """Read the images of a list of numbers at once; of training ones, changed as the epoch has them."""

    def __init__(self, images: Images, augmentation: Augmentation | None) -> None:
        self.images, self.augmentation = images, augmentation

    def __getitem__(self, asked: tuple[int, Tensor]) -> tuple[Tensor, Tensor] | DataError:
        try:
            return self.batch(*asked)
        except DataError as error:  # raised in another process it would come with a page of how it got there
            return error

    def batch(self, epoch: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([self.images.label(i) for i in numbers.tolist()])
        if self.augmentation is not None:
            return self.augmentation.batch(epoch, numbers), labels
        pixels = torch.stack([self.images.pixels(i) for i in numbers.tolist()])
        return self.images.normalised(pixels), labels


def leave_signals_to_the_parent(_: int) -> None:
    """Let a reader go on when all processes of a terminal or of torchrun are told to stop: who trains ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def read(reader: Reader, asked: list[tuple[int, Tensor]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is asked for, in that order."""
    if not asked:
        return
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=asked,
        num_workers=min(workers, len(asked)),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # it draws a seed for its workers, which else came from everybody's numbers
        worker_init_fn=leave_signals_to_the_parent,
    )
    for found in loader:
        if isinstance(found, DataError):
            raise found
        yield found


def training_parts(
    recipe: Recipe, reader: Reader, seed: int, epoch: int, first: int, team: Team
) -> Iterator[list[tuple[Tensor, Tensor, int]]]:
    """Yield for each step of an epoch, from ``first`` on, this process's parts: images, labels, and how many images
    the step has in all."""
    total = len(reader.images)
    order, asked, sizes = order_of(total, seed, epoch), [], []
    for step in range(first, steps_of(recipe, total, team.world)):
        batch = order[step * recipe.batch : (step + 1) * recipe.batch]
        own = batch.tensor_split(team.world)[team.rank].tensor_split(recipe.accumulate)
        asked += [(epoch, part) for part in own]
        sizes.append(len(batch))
    found = read(reader, asked, recipe.workers)
    for size in sizes:
        yield [(*next(found), size) for _ in range(recipe.accumulate)]


def test_parts(recipe: Recipe, reader: Reader, team: Team) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of the images to test with, each once."""
    own = torch.arange(team.rank, len(reader.images), team.world)
    most = max(1, recipe.batch // (team.world * recipe.accumulate))
    yield from read(reader, [(0, part) for part in own.split(most)], recipe.workers)
