"""The figures of trained networks, each from networks and images to numbers and the picture of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data import Images
from ..models import ResNet
from ..terminal import progress
from .checkpoint import Trained
from .depth import Result, accuracy, has_depth
from .figures import draw_cams, draw_depths, draw_gini, draw_gradients, draw_scores
from .gini import gini_row
from .gradcam import grad_cam
from .gradients import gradients
from .record import RECORDED, StageRecord, record

CAMS = 6  # images that fit beside each other


class Subjects(NamedTuple):
    """The networks that are looked at, the images they are shown, and how."""

    networks: Sequence[Trained]
    data: Images
    chosen: Sequence[int]  # the images that all but accuracy is measured with
    batch: int
    trees: int
    seed: int
    device: str

    def batches(self, what: str, chosen: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield these images [B, C, H, W] and their labels [B], with a bar."""
        loader = DataLoader(Subset(self.data, chosen), self.batch)
        for _, (images, labels) in zip(progress(range(len(loader)), what), loader):
            yield images.to(self.device), labels.to(self.device)

    def first(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self.data[i] for i in self.chosen[:number]))
        return torch.stack(images).to(self.device), torch.tensor(labels, device=self.device)


class Made(NamedTuple):
    """A figure and the file it goes to; without a figure, why there is none."""

    file: str
    figure: Any
    told: str = ""


Numbers = dict[str, Any]  # what figures show, by network
Study = Callable[[Subjects, Numbers], Iterator[Made]]


def recorded(subjects: Subjects, trained: Trained) -> dict[str, StageRecord]:
    """Return what a network's stages show of the chosen images; nothing of one that has nothing to show."""
    if not any(isinstance(module, RECORDED) for module in trained.net.modules()):
        return {}
    with torch.no_grad(), record(trained.net) as found:
        for images, _ in subjects.batches(f"{trained.label}: record", subjects.chosen):
            trained.net(images)
    return dict(found.stages)


def scores(subjects: Subjects, numbers: Numbers) -> Iterator[Made]:
    for trained in subjects.networks:
        file, stages = f"scores-{trained.label}.png", recorded(subjects, trained)
        squares = {name: stage.mean_scores for name, stage in stages.items() if stage.scores is not None}
        if not squares:
            yield Made(file, None, f"{trained.name} has no layer attention")
            continue
        numbers[trained.label]["scores"] = {name: square.tolist() for name, square in squares.items()}
        yield Made(file, draw_scores(squares, f"{trained.label}: attention scores"))


def importance(subjects: Subjects, numbers: Numbers) -> Iterator[Made]:
    for trained in subjects.networks:
        file, stages = f"gini-{trained.label}.png", recorded(subjects, trained)
        gates = {name: stage.h for name, stage in stages.items() if stage.h is not None and len(stage.h) > 1}
        if not gates:
            yield Made(file, None, f"{trained.name} has no cell that two layers share")
            continue
        forests = [(name, t) for name, h in gates.items() for t in range(len(h))]
        rows: dict[str, list[Tensor]] = {name: [] for name in gates}
        for name, t in progress(forests, f"{trained.label}: forests"):
            rows[name].append(gini_row(gates[name], t, trees=subjects.trees, seed=subjects.seed))
        squares = {name: torch.stack(of) for name, of in rows.items()}
        numbers[trained.label]["gini"] = {name: square.tolist() for name, square in squares.items()}
        yield Made(file, draw_gini(squares, f"{trained.label}: importance of earlier gates"))


def of_gradients(subjects: Subjects, numbers: Numbers) -> Iterator[Made]:
    images, labels = subjects.first(subjects.batch)
    found = {trained.label: gradients(trained.net, images, labels) for trained in subjects.networks}
    for label, stages in found.items():
        numbers[label]["gradients"] = {name: {"std": float(g.double().std())} for name, g in stages.items()}
    yield Made("gradients.png", draw_gradients(found))


def cams(subjects: Subjects, numbers: Numbers) -> Iterator[Made]:
    images, labels = subjects.first(CAMS)
    convolutional = [trained for trained in subjects.networks if isinstance(trained.net, ResNet)]
    for trained in subjects.networks:
        if trained not in convolutional:
            yield Made("cam.png", None, f"{trained.name} ends in tokens, not in a map")
    if not convolutional:
        return
    found = {trained.label: grad_cam(trained.net, images, labels) for trained in convolutional}
    titles = [subjects.data.names[label] for label in labels.tolist()]
    yield Made("cam.png", draw_cams(images, found, titles))


def depths(subjects: Subjects, numbers: Numbers) -> Iterator[Made]:
    results = []
    for trained in subjects.networks:
        batches = subjects.batches(f"{trained.label}: accuracy", range(len(subjects.data)))
        numbers[trained.label]["accuracy"] = reached = accuracy(trained.net, batches)
        if has_depth(trained.name):
            results.append(Result(trained.name, reached))
        else:
            yield Made("depth.png", None, f"{trained.name} does not say its depth")
    if results:
        yield Made("depth.png", draw_depths(results))


STUDIES: dict[str, Study] = {
    "scores": scores,
    "gini": importance,
    "gradients": of_gradients,
    "cam": cams,
    "depth": depths,
}
