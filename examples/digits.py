"""Handwritten digits that come with scikit-learn, and the training loop that the examples share."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from dla_kernels.terminal import progress


def digits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 1347 images and labels to train with, 450 to test with: [N, 1, 8, 8] in 0 .. 1, and [N]."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    train, test = (part.float().view(-1, 1, 8, 8) / 16 for part in (train, test))
    return train, train_labels, test, test_labels


def shifted(images: Tensor) -> Tensor:
    """Move each image by up to a pixel, up or down, left or right."""
    down, right = torch.randint(-1, 2, (2, len(images))).tolist()
    padded = F.pad(images, (1, 1, 1, 1))
    moved = [x[:, 1 + i : 9 + i, 1 + j : 9 + j] for x, i, j in zip(padded, down, right)]
    return torch.stack(moved)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    return (net(images).argmax(1) == labels).float().mean().item()


def train(net: nn.Module, epochs: int, batch: int = 64, name: str = "train") -> tuple[list[float], list[float], float]:
    """Train a network; return loss and test accuracy after each epoch, and the seconds it took."""
    images, labels, test, test_labels = digits()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    losses, accuracies, began = [], [], time.monotonic()
    for _ in progress(range(epochs), name):
        net.train()
        total = 0.0
        for picked in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            loss = F.cross_entropy(net(shifted(images[picked])), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total * epochs / steps)
        accuracies.append(accuracy(net, test, test_labels))
    return losses, accuracies, time.monotonic() - began


def plot(curves: dict[str, tuple[list[float], list[float]]], path: str) -> None:
    """Plot loss and accuracy over the epochs, by name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, (losses, accuracies) in curves.items():
        epochs = range(1, len(losses) + 1)
        left.plot(epochs, losses, label=name)
        right.plot(epochs, [100 * a for a in accuracies], label=name)
    left.set(title="training loss", xlabel="epoch", yscale="log")
    right.set(title="test accuracy, %", xlabel="epoch", ylim=(90, 100))
    right.legend()
    figure.savefig(path, dpi=120)
    print(f"written: {path}")
