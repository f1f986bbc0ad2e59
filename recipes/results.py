"""What runs have come to, in one small SQLite file."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .checkpoint import Stopped
from .log import Row
from .settings import Recipe, RecipeError

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    settings TEXT,      -- the recipe with its changes, as JSON
    model TEXT,
    data TEXT,          -- as run.resolved has it
    images TEXT,        -- the data set's name
    seed INTEGER,
    parameters INTEGER,
    last REAL,          -- test accuracy after the last epoch; NULL where the run diverged
    best REAL,          -- and after the best
    seconds REAL,       -- of training
    PRIMARY KEY (settings, model, data, seed)
)
"""


class Outcome(NamedTuple):
    """One run's row, but for what it was asked for by."""

    images: str
    seed: int
    parameters: int
    last: float | None
    best: float | None
    seconds: float


def key_of(recipe: Recipe) -> str:
    return json.dumps(recipe.settings(), sort_keys=True)


def folder_of(recipe: Recipe, model: str, data: str, seed: int) -> str:
    """Return a folder's name for a run, another for each recipe, change of it, and data."""
    digest = hashlib.sha256(f"{key_of(recipe)} {data}".encode()).hexdigest()[:8]
    return f"{model}-{seed}-{digest}"


class Results:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with self.told():
            self.base = sqlite3.connect(path)
            self.base.execute(SCHEMA)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.base.close()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say of whatever goes wrong with the file what to do about it."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise Stopped(f"{self.path}: it cannot be used ({error}); the same command goes on when it can") from error
        except sqlite3.DatabaseError as error:
            raise RecipeError(f"{self.path}: expected a file of results, but {error}; choose another --out") from error

    def of(self, recipe: Recipe, model: str, data: str) -> dict[int, Outcome]:
        """Return the runs that there are, by their seeds."""
        with self.told():
            found = self.base.execute(
                "SELECT images, seed, parameters, last, best, seconds FROM runs"
                " WHERE settings = ? AND model = ? AND data = ? ORDER BY seed",
                (key_of(recipe), model, data),
            )
            return {outcome.seed: outcome for outcome in map(Outcome._make, found)}

    def add(self, recipe: Recipe, model: str, data: str, outcome: Outcome) -> None:
        with self.told(), self.base:
            self.base.execute(
                "INSERT OR REPLACE INTO runs (settings, model, data, images, seed, parameters, last, best, seconds)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key_of(recipe), model, data, *outcome),
            )


def outcome_of(rows: list[Row] | None, images: str, seed: int, parameters: int) -> Outcome:
    """Return what a run has come to by its rows; None where it diverged."""
    accuracies = [row["test_accuracy"] for row in rows or []]
    seconds = sum(row["seconds"] for row in rows or [])
    last, best = (accuracies[-1], max(accuracies)) if accuracies else (None, None)
    return Outcome(images, seed, parameters, last, best, seconds)
