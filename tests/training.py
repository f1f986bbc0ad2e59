"""What the tests of recipes share: a recipe of few steps, and runs that are stopped and compared."""

import os
import random
import signal

import torch

from recipes import run as runs
from recipes import settings

MODEL = "dla_light_resnet20"
ANY = random.SystemRandom()  # a run has a seed for all others


def recipe_of(**changes):
    return settings.load("dla-cifar").with_changes({"epochs": 2, "batch": 8, "milestones": [1], **changes})


def saved(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def differing(a, b, at=""):
    """Return where two checkpoints differ, but for how long things took."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [at]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        return [d for k in a if k not in ("seconds", "sums") for d in differing(a[k], b[k], f"{at}.{k}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differing(x, y, f"{at}.{i}")]
    return [] if a == b else [at]


def stop_at(monkeypatch, step, act):
    """Have something happen in a run's step, counted from 1."""
    taken, take_step = [], runs.Run.take_step

    def counted(self, *args):
        take_step(self, *args)
        taken.append(1)
        if len(taken) == step:
            act()

    monkeypatch.setattr(runs.Run, "take_step", counted)


def raise_sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
