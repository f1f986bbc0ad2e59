"""Trained networks, from the files that hold them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..models import ResNet, VisionTransformer, create_model
from ..models.registry import load

KEYS = "a dict with the state dict 'model', the 'name' that create_model takes, and its 'options'"


class Trained(NamedTuple):
    """A network with its weights, in evaluation."""

    label: str  # in figures and file names
    name: str  # as of create_model
    net: ResNet | VisionTransformer
    data: str | None  # where the images were that it was trained with
    size: int | None = None  # the side that they were given, where it was not their own


def load_trained(path: str | Path) -> Trained:
    """Make the network of a checkpoint, on the CPU. Nothing but tensors and plain values is read from the file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a checkpoint such as last.pt, got: {error.strerror or error}") from error
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with the bytes
        raise ValueError(
            f"{path}: expected a checkpoint such as last.pt, got a file that torch.load does not read with "
            "weights_only=True; is it whole?"
        ) from error
    if not isinstance(found, Mapping) or not isinstance(found.get("model"), Mapping):
        got = ", ".join(map(repr, list(found)[:6])) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{path}: expected {KEYS}, got {got}")
    name, options = found.get("name"), found.get("options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise ValueError(f"{path}: expected {KEYS}, got name {name!r} and options {options!r}")
    net = made(path, name, options)
    average = found.get("ema")  # of the weights, which is what the run has tested
    if isinstance(average, Mapping):
        average = {key: value for key, value in average.items() if key != "n_averaged"}
    try:
        load(net, found if average is None else average)
    except RuntimeError as error:  # a line for each parameter
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(f"{path}: expected the weights of a {name}, got others: {first[0].strip()}") from error
    for key, value in net.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{path}: expected finite weights, got others in {key}; its training has diverged")
    where, settings = found.get("data"), found.get("settings")
    size = settings.get("size") if isinstance(settings, Mapping) else None
    return Trained(
        name,
        name,
        net.eval(),
        where if isinstance(where, str) else None,
        size if isinstance(size, int) and where != "synthetic" else None,
    )


def made(path: str | Path, name: str, options: Mapping[str, Any]) -> ResNet | VisionTransformer:
    try:
        return create_model(name, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def labelled(networks: Iterable[Trained]) -> list[Trained]:
    """Give networks of one name a number each, so that no figure takes another's place."""
    networks = list(networks)
    names = [trained.name for trained in networks]
    return [
        trained._replace(label=f"{name}-{names[: i + 1].count(name)}") if names.count(name) > 1 else trained
        for i, (trained, name) in enumerate(zip(networks, names))
    ]
