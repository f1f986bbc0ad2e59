"""One training run, from its first step or from its last checkpoint on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dla_kernels as dla
from dla_kernels.data import Images, open_data
from dla_kernels.models.registry import MODELS
from dla_kernels.terminal import progress

from . import checkpoint
from .augment import Augmentation, generator, mixing
from .batches import Reader, steps_of, test_parts, training_parts
from .checkpoint import Diverged
from .log import Board, Row, draw, told, write_csv
from .optim import optimizer_of, rate, schedule_of
from .settings import Recipe, RecipeError
from .team import Team

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Steps between two looks at the loss and at signals. A GPU would wait for each look.
LOOK = {"cpu": 1, "cuda": 10}
OF_ATTENTION = ("cell", "reduction", "head_channels", "start")  # options of create_model
PRETRAINED = ("pretrained_path", "pretrained_head")  # too
# What making a network raises, and its first images, where its options are impossible; backends that are not there too.
IMPOSSIBLE = (ArithmeticError, LookupError, OSError, RuntimeError, StopIteration, TypeError, ValueError)


class Result(NamedTuple):
    """What a run has come to: its rows, and the signal that it was told to stop by, if it was."""

    rows: list[Row]
    signal: int | None


class Signals:
    """SIGTERM and Ctrl-C, which end a run after its step. A second Ctrl-C ends it at once, but not one of several
    processes: torchrun passes on what the terminal has told them too."""

    def __init__(self, team: Team) -> None:
        self.got: int | None = None
        self.alone = team.world == 1

    def __enter__(self) -> Signals:
        self.before: dict[int, Any] = {n: signal.signal(n, self.take) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def take(self, number: int, _: FrameType | None) -> None:
        self.got = number
        if number == signal.SIGINT and self.alone:
            signal.signal(number, self.before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def model_options(name: str, recipe: Recipe, images: Images) -> dict[str, Any]:
    """Return the options by which ``create_model`` makes the network. A network without any attention has no use for
    what says how attention is made, so that it can stand in one table with those that have."""
    own = {"num_classes": images.classes, "in_channels": images.channels}
    for key in own.keys() & recipe.options.keys():
        raise RecipeError(f"options.{key}: expected none, as the images say that it is {own[key]}; leave it out")
    options = {**recipe.options, **own}
    attention = options.get("attention", MODELS.get(name, {}).get("attention", "none"))
    attentions = attention if isinstance(attention, list) else [attention]  # one for each stage, or for all
    transformer = "heads" in MODELS.get(name, {})
    if transformer:
        options.setdefault("img_size", images.size)
    if all(kind == "none" for kind in attentions) and "inside" not in options:
        options = {key: value for key, value in options.items() if key not in OF_ATTENTION}
    if recipe.drop_path and (transformer or any(str(kind).startswith(("dla_", "mrla_")) for kind in attentions)):
        options.setdefault("drop_path", recipe.drop_path)
    return options


def network(name: str, options: dict[str, Any], classes: int) -> Any:
    """Return the network that ``create_model`` makes; one that it cannot make is one line."""
    of = f"model {name}"
    if "pretrained_path" in options:
        of += f" with the weights of {options['pretrained_path']}"
    try:
        net = dla.create_model(name, **options)
    except (*IMPOSSIBLE, *checkpoint.DAMAGED) as error:
        raise RecipeError(f"{of}: {str(error) or 'expected options by which it can be made'}") from error
    if net.num_classes != classes:
        raise RecipeError(f"{of}: expected one with class scores, got one with features_only")
    return net


@torch.no_grad()
def try_out(net: Any, name: str, images: Images, device: torch.device) -> None:
    """Have a network see an image, so that one which cannot is one line."""
    try:
        net.eval()(torch.zeros(1, images.channels, images.size, images.size, device=device))
    except IMPOSSIBLE as error:
        raise RecipeError(f"model {name}: expected a network that takes these images, but {error}") from error


def resolved(data: str) -> str:
    """Return data by a name that is the same from wherever it is given."""
    return data if data in ("synthetic", "digits") else str(Path(data).expanduser().resolve())


def data_of(recipe: Recipe, where: str) -> tuple[Images, Images]:
    """Return the images to train and to test with. Made images have their own size in any recipe, so that each can be
    tried in little time."""
    size = None if where == "synthetic" else recipe.size
    train, test = (open_data(where, train, size=size) for train in (True, False))
    return train, test


class Run:
    """A network, what trains it, and how far it has come."""

    def __init__(
        self, recipe: Recipe, model: str, data: str, seed: int, out: Path, team: Team, fresh: bool = True
    ) -> None:
        self.recipe, self.out, self.team, self.seed = recipe, out, team, seed
        self.images, tests = data_of(recipe, data)
        self.steps = steps_of(recipe, len(self.images), team.world)  # of an epoch
        self.options = model_options(model, recipe, self.images)
        # What a network begins with, its checkpoints have no more need of.
        weights = {key: self.options.pop(key) for key in PRETRAINED if key in self.options}
        self.identity = {
            "name": model,
            "options": self.options,
            "data": resolved(data),
            "recipe": recipe.name,
            "seed": seed,
            "world": team.world,
            "settings": recipe.settings(),
        }
        self.train_reader = Reader(self.images, Augmentation(recipe, self.images, seed))
        self.test_reader = Reader(tests, None)
        self.mix = mixing(recipe, self.images.classes)

        torch.manual_seed(seed)
        self.net = network(model, {**self.options, **(weights if fresh else {})}, self.images.classes).to(team.device)
        try_out(self.net, model, self.images, team.device)
        if recipe.sync_bn and team.world > 1:
            if team.device.type != "cuda":
                raise RecipeError("sync_bn: expected GPUs, on which alone torch has it")
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)
        self.format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.net.to(memory_format=self.format)
        self.ema = None
        if recipe.ema:
            self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self.optimizer = optimizer_of(self.net, recipe)
        self.schedule = schedule_of(self.optimizer, recipe, self.steps)
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=recipe.amp == "fp16")
        self.epoch = self.step = 0  # the next step
        self.sums = self.no_sums()  # of the epoch's steps so far
        self.rows: list[Row] = []
        own = generator("process", seed, team.rank).initial_seed()  # of what is drawn on the way, as for drop path
        torch.manual_seed(own)
        random.seed(own)

    def no_sums(self) -> Tensor:
        """Return loss, images right and images, none of them yet; behind them seconds."""
        return torch.zeros(4, dtype=torch.float64, device=self.team.device)

    def save(self) -> None:
        """Write a checkpoint of the next step."""
        states = checkpoint.random_states(self.team)
        sums = self.team.sum(self.sums.clone())
        if self.team.leads:
            state = {
                **self.identity,
                "ema": self.ema.state_dict() if self.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "sums": sums,
                "random": states,
                "rows": self.rows,
            }
            checkpoint.save(self.out, self.net, state)

    def resume(self, found: dict[str, Any]) -> None:
        """Go on from a checkpoint of this run."""
        path = self.out / checkpoint.NAME
        checkpoint.check_same(path, found, self.identity)
        try:
            self.restore(found)
        except checkpoint.DAMAGED as error:
            raise RecipeError(
                f"{path}: expected a whole checkpoint, but not all is there ({error}); remove it"
            ) from error

    def restore(self, found: dict[str, Any]) -> None:
        self.net.load_state_dict(found["model"])
        if self.ema:
            self.ema.load_state_dict(found["ema"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.schedule.load_state_dict(found["schedule"])
        self.scaler.load_state_dict(found["scaler"])
        self.epoch, self.step, self.rows = found["epoch"], found["step"], found["rows"]
        if self.team.leads:  # the others go on from none
            self.sums.copy_(found["sums"])
        checkpoint.restore_random_states(found["random"], self.team)

    def train(self, signals: Signals, board: Board | None) -> None:
        """Go on to the end, or until a signal."""
        forward = self.net
        if self.recipe.compile:
            self.net.compile()
        if self.team.world > 1:
            forward = DistributedDataParallel(self.net)
        while self.epoch < self.recipe.epochs:
            if not self.train_epoch(forward, signals):
                return
            tested = self.test(signals)
            if tested is None:
                return
            done = self.team.sum(self.sums.clone()).tolist()
            self.epoch, self.step, self.sums = self.epoch + 1, 0, self.no_sums()
            self.rows.append(
                {
                    "epoch": self.epoch,
                    "rate": self.recipe.lr * rate(self.recipe, self.epoch - 1 / self.steps),  # the last step's
                    "train_loss": done[0] / done[2],
                    "train_accuracy": done[1] / done[2],
                    "test_loss": tested[0] / tested[2],
                    "test_accuracy": tested[1] / tested[2],
                    "seconds": done[3] / self.team.world,
                }
            )
            self.save()
            if self.team.leads:
                print(told(self.rows[-1], self.recipe.epochs), flush=True)
                write_csv(self.rows, self.out / "log.csv")
            if board:
                board.add(self.rows[-1])
            if self.team.any(signals.got is not None):
                return

    def train_epoch(self, forward: Any, signals: Signals) -> bool:
        """Take the steps that are left of an epoch; return whether it is done, False where a signal ends the run."""
        recipe, team = self.recipe, self.team
        self.net.train()
        parts = training_parts(recipe, self.train_reader, self.seed, self.epoch, self.step, team)
        left = range(self.step, self.steps)
        for step in progress(left, f"epoch {self.epoch + 1}/{recipe.epochs}") if team.leads else left:
            began = time.monotonic()
            self.take_step(forward, next(parts))
            self.sums[3] += time.monotonic() - began
            self.step = step + 1
            if self.step % LOOK[team.device.type] == 0 or self.step == self.steps:
                if team.any(not bool(self.sums.isfinite().all())):
                    raise Diverged(
                        f"epoch {self.epoch + 1}, step {self.step}: expected a finite loss, got NaN or infinity; a "
                        f"smaller lr or clip may help{checkpoint.before(self.out)}"
                    )
                if team.any(signals.got is not None):
                    self.save()
                    return False
            if recipe.save_every and self.step % recipe.save_every == 0 and self.step < self.steps:
                self.save()
        return True

    def take_step(self, forward: Any, parts: list[tuple[Tensor, Tensor, int]]) -> None:
        recipe, device = self.recipe, self.team.device
        self.optimizer.zero_grad(set_to_none=True)
        for i, (x, labels, size) in enumerate(parts):
            x = x.to(device, memory_format=self.format, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            targets = labels
            if self.mix is not None:
                x, targets = self.mix(x, labels)
            last = i == len(parts) - 1
            with forward.no_sync() if self.team.world > 1 and not last else contextlib.nullcontext():
                with self.autocast():
                    scores = forward(x)
                    loss = F.cross_entropy(scores, targets, label_smoothing=recipe.smoothing, reduction="sum")
                # Processes average their gradients: together this is the mean over the images of the step.
                self.scaler.scale(loss * (self.team.world / size)).backward()
            self.sums[0] += loss.detach()
            self.sums[1] += (scores.detach().argmax(1) == labels).sum()
            self.sums[2] += len(x)
        if recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.net)

    def autocast(self) -> torch.autocast:
        dtype = AMP[self.recipe.amp]
        return torch.autocast(self.team.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def test(self, signals: Signals) -> list[float] | None:
        """Return loss, images right, and images; None where a signal ends the run."""
        net = (self.ema.module if self.ema else self.net).eval()
        self.team.same([*net.buffers()])  # each process has statistics of its own images: the first one's count
        sums = self.no_sums()
        for x, labels in test_parts(self.recipe, self.test_reader, self.team):
            if self.team.world == 1 and signals.got is not None:  # several would have to agree; they go on to the end
                self.save()
                return None
            x = x.to(self.team.device, memory_format=self.format, non_blocking=True)
            labels = labels.to(self.team.device, non_blocking=True)
            with self.autocast():
                scores = net(x)
                loss = F.cross_entropy(scores, labels, reduction="sum")
            sums[0] += loss
            sums[1] += (scores.argmax(1) == labels).sum()
            sums[2] += len(x)
        return self.team.sum(sums).tolist()


@contextlib.contextmanager
def determinism(recipe: Recipe, team: Team) -> Iterator[None]:
    """Have a GPU compute the same bits from run to run, or look for its fastest algorithms instead."""
    if team.device.type == "cuda":
        torch.backends.cudnn.benchmark = not recipe.deterministic
        if recipe.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
    yield


def run(
    recipe: Recipe,
    model: str,
    data: str,
    *,
    seed: int = 0,
    out: Path,
    resume: bool = False,
    team: Team | None = None,
) -> Result:
    """Train a network as a recipe says.

    model: its name, as ``dla_kernels.list_models()`` has it.
    data: as ``dla_kernels.data.open_data`` takes it.
    out: the folder for ``last.pt``, ``log.csv``, ``curves.png`` and TensorBoard's files.
    team: the processes that there are already; else those that torchrun has started.
    resume: whether the run that ``out`` holds goes on; where it holds none, one begins.
    """
    with contextlib.nullcontext(team) if team else Team() as team, determinism(recipe, team), Signals(team) as signals:
        found = checkpoint.load(out)
        left = [name for name in ("log.csv", "curves.png", "tensorboard") if (out / name).exists()]
        if found is None and left and not resume:
            raise RecipeError(
                f"{out}: expected no files of another run, got {', '.join(left)}; choose another --out, or "
                "--resume auto, which writes them anew"
            )
        if len(set(team.all_of((found["epoch"], found["step"]) if found else None))) > 1:
            raise RecipeError(f"{out}: expected a folder that all processes share, but not all find the same last.pt")
        if found is not None and not resume:
            raise RecipeError(f"{out}: it holds a run already; --resume auto goes on with it, or choose another --out")
        it = Run(recipe, model, data, seed, out, team, fresh=found is None)
        if found is not None:
            it.resume(found)
        with checkpoint.alone(out) if team.leads else contextlib.nullcontext():
            board = None
            if team.leads:
                write_csv(it.rows, out / "log.csv")  # what a killed process left of it may lack an epoch
                board = Board(out / "tensorboard", it.rows)
            try:
                it.train(signals, board)
            finally:
                if board:
                    board.close()
            if team.leads and it.rows and not draw({model: it.rows}, out / "curves.png"):
                print("curves.png is not drawn: matplotlib is not installed")
        return Result(it.rows, signals.got if it.epoch < recipe.epochs else None)
