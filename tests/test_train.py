"""Recipes train, and a run that is stopped, killed or fails leaves what it can go on from."""

import csv
import importlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import dla_kernels as dla
from dla_kernels.data import open_data, small
from recipes import checkpoint, settings, train
from recipes import run as runs

from .clients import imported
from .test_data import write_arrays, write_photos
from .tiers import ROOT
from .training import ANY, MODEL, differing, raise_sigterm, recipe_of, saved, stop_at


@pytest.mark.parametrize("name", settings.names())
def test_every_recipe_takes_two_steps(name, few_images, monkeypatch, tmp_path):
    recipe = settings.load(name)
    if recipe.resized_crop or recipe.mixup:
        imported("torchvision")
    imagenet, transformer = recipe.size == 224, "deit" in recipe.model
    monkeypatch.setattr(small, "NUMBERS", {True: 16, False: 4})
    monkeypatch.setattr(small, "SIDE", 32 if imagenet else 8)
    attention = "dla_light" if recipe.model.startswith("dla") else "dia"
    model = recipe.model if transformer else f"{attention}_{'resnet18' if imagenet else 'resnet20'}"
    recipe = recipe.with_changes({"epochs": 1, "batch": 8, "workers": 0})
    (row,), stopped = runs.run(recipe, model, "synthetic", out=tmp_path)
    assert stopped is None and row["train_loss"] > 0
    assert saved(tmp_path)["schedule"]["last_epoch"] == 2
    assert recipe.table or recipe.note


def test_a_run_learns_and_leaves_its_log_its_curves_and_its_checkpoint(few_images, tmp_path):
    how = {"lr": 0.05, "ema": 0.5, "accumulate": 2, "clip": 5.0, "smoothing": 0.1, "batch": 20}
    recipe = recipe_of(epochs=6, milestones=[5], drop_path=0.0, flip=False, pad=0, **how)
    rows, stopped = runs.run(recipe, MODEL, "synthetic", out=tmp_path)
    assert stopped is None and rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    read = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["test_loss"]) for row in read] == [row["test_loss"] for row in rows]
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"
    found = saved(tmp_path)
    assert {"model", "name", "options", "data", "recipe", "epoch", "seed"} <= found.keys()
    # What is tested is the average of the weights.
    average = {key.removeprefix("module."): value for key, value in found["ema"].items() if key != "n_averaged"}
    assert loss_of({**found, "model": average}) == pytest.approx(rows[-1]["test_loss"], rel=1e-4)
    assert loss_of(found) != pytest.approx(rows[-1]["test_loss"], rel=1e-4)


def loss_of(found):
    """Return the loss that a checkpoint's network has on its test images."""
    net = dla.create_model(found["name"], **found["options"])
    net.load_state_dict(found["model"])
    tests = open_data(found["data"], False)
    x = torch.stack([tests[i][0] for i in range(len(tests))])
    with torch.no_grad():
        return F.cross_entropy(net.eval()(x), tests.labels).item()


def test_the_digits_are_learned(tmp_path):
    """As ``make train`` has it."""
    pytest.importorskip("sklearn")
    assert train.main(["--recipe", "digits", "--data", "digits", "--out", str(tmp_path)]) == 0
    assert saved(tmp_path)["rows"][-1]["test_accuracy"] > 0.97


@pytest.mark.parametrize("changes", [{"amp": "bf16"}, {"amp": "fp16", "clip": 1.0}, {"channels_last": True}])
def test_ways_to_compute_train_too(changes, few_images, tmp_path):
    (row,), _ = runs.run(recipe_of(epochs=1, batch=20, **changes), MODEL, "synthetic", out=tmp_path)
    assert row["train_loss"] < 10 and torch.isfinite(saved(tmp_path)["model"]["fc.weight"]).all()


def test_a_compiled_network_has_the_same_names(few_images, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    runs.run(recipe_of(epochs=1, compile=True), "resnet20", "synthetic", out=tmp_path)
    assert len(compiled) == 1
    dla.create_model("resnet20").load_state_dict(saved(tmp_path)["model"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "amp": "fp16", "accumulate": 2},
        {"mixup": 0.8, "cutmix": 1.0, "optimizer": "adamw"},
    ],
    ids=["plain", "everything", "mixed"],
)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(changes, few_images, monkeypatch, tmp_path):
    if "mixup" in changes:
        imported("torchvision")
    recipe = recipe_of(**changes)
    whole, _ = runs.run(recipe, MODEL, "synthetic", seed=3, out=tmp_path / "whole")
    for step in (ANY.randrange(1, 10), *([] if changes else [10])):
        out = tmp_path / str(step)
        with monkeypatch.context() as patched:
            stop_at(patched, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            rows, stopped = runs.run(recipe, MODEL, "synthetic", seed=3, out=out)
        assert stopped == signal.SIGTERM and len(rows) == (step - 1) // 5
        assert (saved(out)["epoch"], saved(out)["step"]) == ((step - 1) // 5, (step - 1) % 5 + 1)
        rows, stopped = runs.run(recipe, MODEL, "synthetic", seed=3, out=out, resume=True)
        assert stopped is None and differing(saved(tmp_path / "whole"), saved(out)) == []
        assert len((out / "log.csv").read_text().splitlines()) == 1 + len(whole)


def test_the_logs_of_a_run_that_goes_on_are_those_of_its_checkpoint(few_images, monkeypatch, tmp_path):
    """Whatever a killed process had time to write of them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as patched:
        stop_at(patched, 7, raise_sigterm)
        runs.run(recipe_of(), "resnet20", "synthetic", out=tmp_path)
    (tmp_path / "log.csv").unlink()
    for file in (tmp_path / "tensorboard").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    rows, _ = runs.run(recipe_of(), "resnet20", "synthetic", out=tmp_path, resume=True)
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    told = [(event.step, event.value) for event in found.Scalars("test/loss")]
    assert told == [(row["epoch"], pytest.approx(row["test_loss"])) for row in rows] and len(rows) == 2
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["1", "2"]
    (tmp_path / "log.csv").unlink()
    runs.run(recipe_of(), "resnet20", "synthetic", out=tmp_path, resume=True)  # it is done
    assert (tmp_path / "log.csv").exists()


def test_who_reads_the_images_changes_nothing(few_images, tmp_path):
    for workers in (0, 2):
        recipe = recipe_of(epochs=1, workers=workers)
        runs.run(recipe, "resnet20", "synthetic", out=tmp_path / str(workers))
    assert differing(saved(tmp_path / "0"), saved(tmp_path / "2")) == []


def test_a_signal_while_testing_stops_the_run_too(few_images, monkeypatch, tmp_path):
    recipe, parts = recipe_of(), runs.test_parts

    def told(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return parts(*args)

    runs.run(recipe, MODEL, "synthetic", out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(runs, "test_parts", told)
        rows, stopped = runs.run(recipe, MODEL, "synthetic", out=tmp_path / "cut")
    assert stopped == signal.SIGINT and rows == [] and saved(tmp_path / "cut")["step"] == 5
    runs.run(recipe, MODEL, "synthetic", out=tmp_path / "cut", resume=True)
    assert differing(saved(tmp_path / "whole"), saved(tmp_path / "cut")) == []


def test_a_signal_after_the_last_step_stops_nothing(few_images, monkeypatch, tmp_path):
    write_csv = runs.write_csv
    monkeypatch.setattr(
        runs, "write_csv", lambda rows, path: (raise_sigterm() if rows else None, write_csv(rows, path))
    )
    rows, stopped = runs.run(recipe_of(epochs=1), "resnet20", "synthetic", out=tmp_path)
    assert len(rows) == 1 and stopped is None


def command(data, out, *options):
    changes = ["batch=8", "milestones=[1]", "save_every=1"]
    said = [word for change in changes for word in ("--set", change)]
    return ["--recipe", "dla-cifar", "--model", MODEL, "--data", str(data), "--out", str(out), *said, *options]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_process_that_is_killed_leaves_a_checkpoint_to_go_on_from(how, tmp_path):
    data = write_arrays(tmp_path / "a.npz", images=40)
    start = [sys.executable, "-m", "recipes.train", *command(data, tmp_path / "cut", "--epochs", "1000")]
    process = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "last.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(ANY.random())
    process.send_signal(how)
    told, complaints = process.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM, complaints
        assert "stopped by a signal; --resume auto goes on" in told
    else:
        assert process.returncode == -signal.SIGKILL
    assert saved(tmp_path / "cut")["name"] == MODEL

    # Both go on for so many steps; the one that was broken goes on in another process.
    reached = saved(tmp_path / "cut")
    steps = 5 * reached["epoch"] + reached["step"] + 3

    def finish(out):
        with pytest.MonkeyPatch.context() as patched:
            stop_at(patched, steps - (5 * reached["epoch"] + reached["step"] if out == "cut" else 0), raise_sigterm)
            runs.run(
                settings.load("dla-cifar").with_changes({"epochs": 1000, "batch": 8, "milestones": [1]}),
                MODEL,
                str(data),
                out=tmp_path / out,
                resume=True,
            )

    finish("cut")
    finish("whole")
    assert differing(saved(tmp_path / "whole"), saved(tmp_path / "cut")) == []


TWO_RUNS = """
import sys
import weakref
from pathlib import Path
from torch.distributed import group
from recipes.run import run
from recipes.settings import load
from recipes.team import Team
with Team() as team:
    of = weakref.ref(group.WORLD)
    for out, changes in (("bn", {}), ("plain", {"options.norm": "none"})):
        recipe = load("dia-cifar").with_changes({"epochs": 1, "batch": 8, "lr": 0.01, **changes})
        run(recipe, "dia_resnet20", sys.argv[1], out=Path(sys.argv[2]) / out, team=team)
assert of() is None, "expected the group to end with its team, as its threads would else run on into the exit"
"""


def test_two_processes_train_as_one(tmp_path):
    """With norms they do as one process with two parts, since each has norms of its own; without, as any. The four
    images of the last batch are divided too."""
    data = write_arrays(tmp_path / "a.npz", images=20)
    (tmp_path / "two_runs.py").write_text(TWO_RUNS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, tmp_path / "two_runs.py", data, tmp_path / "two"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == 2, "one process tells"
    for out, changes in (("bn", {"accumulate": 2}), ("plain", {"options.norm": "none"})):
        recipe = settings.load("dia-cifar").with_changes({"epochs": 1, "batch": 8, "lr": 0.01, **changes})
        (row,), _ = runs.run(recipe, "dia_resnet20", str(data), out=tmp_path / out)
        one, two = saved(tmp_path / out), saved(tmp_path / "two" / out)
        trained = [name for name in one["model"] if "running" not in name and "num_batches" not in name]
        assert len(trained) > 20
        expected, found = ([state["model"][name] for name in trained] for state in (one, two))
        torch.testing.assert_close(found, expected)
        assert two["rows"][0]["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)
        assert two["rows"][0]["test_loss"] == pytest.approx(loss_of(two), rel=1e-4)
        if out == "plain":
            assert two["rows"][0]["test_loss"] == pytest.approx(row["test_loss"], rel=1e-4)


# ---- what goes wrong ----


def failed(capsys, *options):
    """Run the command, and return the one line that it ends with."""
    assert train.main([*options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("recipes.train: ") and said.count("\n") == 1
    return said


def test_a_loss_that_is_no_number_ends_the_run_and_the_checkpoint_before_it_is_kept(few_images, capsys, tmp_path):
    options = ["--recipe", "dla-cifar", "--model", "resnet20", "--data", "synthetic", "--out", str(tmp_path)]
    options += ["--set", "batch=8", "--set", "warmup=1.0", "--set", "lr=1e38", "--epochs", "3", "--set", "save_every=1"]
    said = failed(capsys, *options)
    assert re.search(r"expected (a finite loss|finite numbers), got NaN or infinity", said)
    if (tmp_path / "last.pt").exists():
        assert all(torch.isfinite(value).all() for value in saved(tmp_path)["model"].values())


def test_weights_that_are_no_numbers_are_never_saved(few_images, monkeypatch, tmp_path):
    runs.run(recipe_of(epochs=1), MODEL, "synthetic", out=tmp_path / "good")

    def spoil(self, *args):
        take_step(self, *args)
        if (self.epoch, self.step) == (1, self.steps - 1):  # no loss sees it any more
            self.net.conv1.weight.data.view(-1)[0] = float("nan")

    take_step = runs.Run.take_step
    monkeypatch.setattr(runs.Run, "take_step", spoil)
    with pytest.raises(checkpoint.Diverged, match=r"NaN or infinity; .*last.pt is the checkpoint before that"):
        runs.run(recipe_of(epochs=2), MODEL, "synthetic", out=tmp_path / "bad")
    assert saved(tmp_path / "bad")["epoch"] == 1
    assert torch.isfinite(saved(tmp_path / "bad")["model"]["conv1.weight"]).all()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full is Linux's")
def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_is_kept(few_images, monkeypatch, capsys, tmp_path):
    stop_at(monkeypatch, 7, lambda: (tmp_path / ".last.pt.part").symlink_to("/dev/full"))
    options = [
        "--recipe",
        "dla-cifar",
        "--model",
        MODEL,
        "--data",
        "synthetic",
        "--out",
        str(tmp_path),
        "--epochs",
        "2",
    ]
    said = failed(capsys, *options, "--set", "batch=8")
    assert "last.pt: it cannot be written (No space left on device); the one before it is kept" in said
    assert saved(tmp_path)["epoch"] == 1
    assert not (tmp_path / ".last.pt.part").is_symlink()


def test_a_run_that_is_there_is_neither_overwritten_nor_taken_for_another(few_images, capsys, tmp_path):
    options = ["--recipe", "dla-cifar", "--model", "resnet20", "--data", "synthetic", "--out", str(tmp_path)]
    options += ["--set", "batch=8", "--epochs", "1"]
    assert train.main(options) == 0
    assert "it holds a run already; --resume auto goes on with it" in failed(capsys, *options)
    options += ["--resume", "auto"]
    before, before_bytes = saved(tmp_path), (tmp_path / "last.pt").read_bytes()
    assert train.main([*options, "--set", "workers=1"]) == 0  # it is done, and stays as it is
    assert differing(saved(tmp_path), before) == []
    capsys.readouterr()
    assert "there name is 'resnet20', here 'se_resnet20'" in failed(capsys, *options, "--model", "se_resnet20")
    assert "there lr is 0.1, here 0.2" in failed(capsys, *options, "--set", "lr=0.2")
    assert "there seed is 0, here 1" in failed(capsys, *options, "--seed", "1")
    torch.save({key: value for key, value in before.items() if key != "rows"}, tmp_path / "last.pt")
    assert "last.pt: expected a whole checkpoint, but not all is there ('rows')" in failed(capsys, *options)
    for damaged in (before_bytes[:1000], b"root:x:0:0"):
        (tmp_path / "last.pt").write_bytes(damaged)
        assert "last.pt: expected a checkpoint, but it cannot be read, perhaps it is" in failed(capsys, *options)


def test_files_that_are_not_the_run_s_own_stay(few_images, capsys, tmp_path):
    (tmp_path / "tensorboard").mkdir()
    kept = [tmp_path / "tensorboard" / "notes.txt", tmp_path / "log.csv"]
    for file in kept:
        file.write_text("mine")
    options = ["--recipe", "dla-cifar", "--model", "resnet20", "--data", "synthetic", "--out", str(tmp_path)]
    options += ["--set", "batch=20", "--epochs", "1"]
    assert "expected no files of another run, got log.csv, tensorboard" in failed(capsys, *options)
    assert [file.read_text() for file in kept] == ["mine"] * 2
    assert train.main([*options, "--resume", "auto"]) == 0
    assert kept[0].read_text() == "mine"


def test_what_is_interrupted_tells_of_a_checkpoint_where_there_is_one(few_images, monkeypatch, capsys, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    options = ["--recipe", "dla-cifar", "--model", "resnet20", "--data", "synthetic", "--resume", "auto"]
    options += ["--set", "batch=20", "--out", str(tmp_path)]
    for more, said in ([], ""), (["--set", "save_every=1"], f"; {tmp_path}/last.pt is the checkpoint before that"):
        with monkeypatch.context() as patched:
            stop_at(patched, 2, interrupt)
            assert train.main([*options, *more]) == 130
        assert capsys.readouterr().err == f"recipes.train: interrupted{said}\n"


def test_two_runs_in_one_folder_are_one_too_many(few_images, capsys, tmp_path):
    claim = (
        "import sys; from pathlib import Path; from recipes.checkpoint import alone\nwith alone(Path(sys.argv[1])): "
    )
    options = ["--recipe", "dla-cifar", "--model", "resnet20", "--data", "synthetic", "--out", str(tmp_path / "it")]
    start = [sys.executable, "-c", f"{claim}print(flush=True); input()", tmp_path / "it"]
    with subprocess.Popen(start, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert "expected no other run in it, but one is writing there" in failed(capsys, *options, "--set", "batch=8")
        other.kill()
    with checkpoint.alone(tmp_path / "it"):
        pass


def test_pretrained_weights_are_where_a_run_begins_and_not_needed_any_more(few_images, tmp_path):
    weights, data = tmp_path / "weights.pt", tmp_path / "a.npz"
    torch.save(dla.create_model("resnet20", 3, in_channels=1).state_dict(), weights)
    recipe = recipe_of(epochs=1, lr=0.0, **{"options.pretrained_path": str(weights)})
    runs.run(recipe, "resnet20", str(write_arrays(data)), out=tmp_path / "it")
    found = saved(tmp_path / "it")
    assert torch.equal(found["model"]["conv1.weight"], torch.load(weights)["conv1.weight"])
    weights.unlink()
    dla.create_model(found["name"], **found["options"]).load_state_dict(found["model"])
    beside = os.path.relpath(data)  # the same data by another name
    rows, _ = runs.run(recipe, "resnet20", beside, out=tmp_path / "it", resume=True)
    assert rows == found["rows"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of width = 0
@pytest.mark.parametrize(
    "options, said",
    [
        (["--data", "nowhere"], "there is no nowhere"),
        (["--recipe", "nothing"], "expected a .toml file or one of"),
        (["--model", "resnet21"], "model resnet21: name: expected a name such as resnet20"),
        (["--set", "options.cells=lstm"], "model dla_light_resnet20: options: expected some of"),
        (["--set", "options.features_only=true"], "dla_light_resnet20: expected one with class scores"),
        (["--set", "resized_crop=true", "--set", "pad=4"], "pad: expected 0 with resized_crop"),
        (["--set", "options.width=0"], "dla_light_resnet20: width, stem: expected at least 1 channel each, got 0, 0"),
        (["--set", "options.pretrained_path=setup.py"], "model dla_light_resnet20 with the weights of setup.py: "),
        (["--set", "nesterov=true", "--set", "momentum=0"], "sgd cannot be made (Nesterov momentum requires"),
        (["--seed", "-1"], "--seed: expected a whole number from 0 to"),
        (["--epochs", "0"], "epochs: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(options, said, few_images, capsys, tmp_path):
    plain = ["--recipe", "digits", "--data", "synthetic", "--out", str(tmp_path / "out"), "--set", "batch=8"]
    assert said in failed(capsys, *plain, *options)
    assert not (tmp_path / "out").exists()


def test_a_reader_in_another_process_says_one_line_too(capsys, tmp_path):
    write_photos(tmp_path / "data")
    photo = tmp_path / "data" / "val" / "dog" / "1.png"
    photo.write_bytes(photo.read_bytes()[:500])
    options = ["--recipe", "dla-cifar", "--data", str(tmp_path / "data"), "--model", "resnet20", "--epochs", "1"]
    options += ["--set", "batch=4", "--set", "size=16", "--set", "workers=1", "--out", str(tmp_path / "out")]
    assert "1.png: expected a photo, but it cannot be read" in failed(capsys, *options)


@pytest.mark.parametrize("name", ["train", "table"])
def test_commands_have_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"recipes.{name}").main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: python -m recipes.{name}" in said and "--recipe" in said
