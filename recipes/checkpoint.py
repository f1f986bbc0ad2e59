"""Checkpoints: whole or not there, and all that a run needs to go on as if nothing had been.

``last.pt`` is a dict of plain values and tensors: ``model`` is the state dict of the network that
``dla_kernels.create_model(name, **options)`` makes, ``ema`` that of the average of its weights where there is one.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .settings import RecipeError
from .team import Team

NAME = "last.pt"
# What reading a checkpoint raises, and going on from one, where it is damaged.
DAMAGED = (AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)


class Stopped(RuntimeError):
    """A run that cannot go on; the message is for those who started it."""


class Diverged(Stopped):
    """A run whose numbers have become NaN or infinite."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others from writing to a folder. However this process ends, the system ends its claim, which the processes
    that it starts do not share."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise RecipeError(
                f"{folder}: expected no other run in it, but one is writing there; wait for it, or choose another --out"
            ) from error
        yield


def write(path: Path, content: bytes) -> None:
    """Write a file beside the old one, then put it in its place: who reads finds one or the other, whole."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kept = "; the one before it is kept" if path.exists() else ""
        raise Stopped(f"{path}: it cannot be written ({error.strerror}){kept}") from error


def save(folder: Path, net: nn.Module, state: dict[str, Any]) -> None:
    """Write a checkpoint, unless the network has lost its numbers."""
    lost = [name for name, value in net.state_dict().items() if not torch.isfinite(value).all()]
    if lost:
        raise Diverged(f"{lost[0]}: expected finite numbers, got NaN or infinity{before(folder)}")
    content = io.BytesIO()
    torch.save({"model": net.state_dict(), **state}, content)
    write(folder / NAME, content.getvalue())


def before(folder: Path) -> str:
    """Return what is left where a run fails."""
    return f"; {folder / NAME} is the checkpoint before that" if (folder / NAME).exists() else ""


def load(folder: Path) -> dict[str, Any] | None:
    """Return the last checkpoint, if there is one."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise RecipeError(
            f"{path}: expected a checkpoint, but it cannot be read, perhaps it is damaged; remove it"
        ) from error
    if not isinstance(found, dict) or not {"settings", "epoch", "step"} <= found.keys():
        raise RecipeError(f"{path}: expected a checkpoint of recipes.train, got another file; choose another --out")
    return found


def check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise an error unless a checkpoint is of the run that is to go on."""
    for key, value in wanted.items():
        was = found.get(key)
        if isinstance(value, dict) and isinstance(was, dict):
            other = next((k for k in {*value, *was} if value.get(k) != was.get(k)), None)
            if other is None:
                continue
            key, value, was = other, value.get(other), was.get(other)
        if value != was:
            raise RecipeError(
                f"{path}: expected a checkpoint of the same run, but there {key} is {was!r}, here {value!r}; "
                "choose another --out"
            )


def random_states(team: Team) -> list[dict[str, Any]]:
    """Return where the random numbers of each process are."""
    own: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if team.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(team.device)
    return team.all_of(own)


def restore_random_states(states: list[dict[str, Any]], team: Team) -> None:
    own = states[team.rank]
    torch.set_rng_state(own["torch"])
    version, numbers, gauss = own["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in own and team.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], team.device)
