"""Figures show the numbers they are given, and the command draws every one of them from networks trained here."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import dla_kernels as dla
from dla_kernels import __main__ as cli
from dla_kernels import analysis
from dla_kernels.analysis import command
from dla_kernels.analysis.checkpoint import Trained
from dla_kernels.analysis.studies import Subjects, importance
from dla_kernels.data import open_data
from dla_kernels.models import ResNet
from dla_kernels.models.blocks import BasicBlock

NAMES = ("dla_light_resnet20", "dla_base_resnet20", "dia_resnet20")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Train networks on the digits for some steps, and keep them as ``recipes.train`` does."""
    folder, data = tmp_path_factory.mktemp("trained"), open_data("digits", train=True)
    images, labels = (torch.stack(part) for part in zip(*((x, torch.tensor(label)) for x, label in data)))
    paths = {}
    for name in NAMES:
        torch.manual_seed(0)
        options = {"num_classes": 10, "in_channels": 1}
        net = dla.create_model(name, **options)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.3  # after few steps the running statistics are there
        optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
        for _ in range(30):
            picked = torch.randperm(len(images))[:32]
            loss = F.cross_entropy(net(images[picked]), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        paths[name] = folder / f"{name}.pt"
        held = {"model": net.state_dict(), "name": name, "options": options, "data": "digits", "recipe": {"epochs": 2}}
        torch.save(held, paths[name])
    return paths


@pytest.fixture(scope="module")
def analyzed(checkpoints, tmp_path_factory):
    """Return the folder of figures and the numbers in them, of all networks, one of them twice."""
    out = tmp_path_factory.mktemp("figures") / "of" / "digits"
    given = [str(path) for path in (*checkpoints.values(), checkpoints[NAMES[0]])]
    assert cli.main(["analyze", *given, "--out", str(out), "--images", "48", "--batch", "32", "--trees", "2"]) == 0
    return out, json.loads((out / "numbers.json").read_text())


LABELS = ("dla_light_resnet20-1", "dla_light_resnet20-2", "dla_base_resnet20", "dia_resnet20")


def test_the_command_draws_every_figure(analyzed):
    from matplotlib.image import imread

    out, numbers = analyzed
    files = {f"scores-{label}.png" for label in LABELS[:3]} | {f"gini-{label}.png" for label in LABELS}
    assert {path.name for path in out.iterdir()} == files | {"gradients.png", "cam.png", "depth.png", "numbers.json"}
    for path in out.glob("*.png"):
        assert imread(path)[..., :3].std() > 0.02, f"{path.name} is blank"
    assert set(numbers) == set(LABELS)


def test_the_networks_had_learned(analyzed):
    for label, found in analyzed[1].items():
        assert found["accuracy"] > 0.5, label


def test_what_the_command_counts_is_what_one_counts_oneself(checkpoints, analyzed):
    """One network twice has the same numbers twice; the accuracy is that of the whole test set."""
    numbers, data = analyzed[1], open_data("digits", train=False)
    first, second = (dict(numbers[f"dla_light_resnet20-{i}"]) for i in (1, 2))
    assert first.pop("checkpoint") == second.pop("checkpoint")
    assert first == second
    images = torch.stack([data[i][0] for i in range(len(data))])
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:48]
    for name in NAMES[1:]:
        net = dla.create_model(name, num_classes=10, in_channels=1, pretrained_path=checkpoints[name]).eval()
        with torch.no_grad(), analysis.record(net) as found:
            right = (net(images).argmax(1) == data.labels).float().mean()
        assert numbers[name]["accuracy"] == pytest.approx(right.item())
        for stage, square in numbers[name].get("scores", {}).items():
            expected = found.stages[stage].scores[:, :, chosen].mean((2, 3))
            torch.testing.assert_close(torch.tensor(square), expected, rtol=1e-4, atol=1e-6)


def test_forests_are_those_of_the_trees_and_the_seed_asked_for():
    net = ResNet((3,), BasicBlock, attention="dia", in_channels=1, width=4).eval()
    data, chosen = open_data("digits", train=False), [*range(3, 40)]
    subjects = Subjects([Trained("a", "dia_resnet20", net, None)], data, chosen, 64, 2, 3, "cpu")
    numbers = {"a": {}}
    (made,) = importance(subjects, numbers)
    assert made.file == "gini-a.png"
    with torch.no_grad(), analysis.record(net) as found:
        net(torch.stack([data[i][0] for i in chosen]))
    h = found.stages["layer1"].h
    torch.testing.assert_close(torch.tensor(numbers["a"]["gini"]["layer1"]).double(), analysis.gini(h, trees=2, seed=3))


def test_scores_of_base_attention_are_shares(analyzed):
    squares = analyzed[1]["dla_base_resnet20"]["scores"]
    assert list(squares) == ["layer1", "layer2", "layer3"]
    for square in squares.values():
        torch.testing.assert_close(torch.tensor(square).sum(1), torch.ones(len(square)))


@pytest.fixture(scope="module")
def trained(checkpoints):
    """Return networks by name, and images of the test set with their labels."""
    data = open_data("digits", train=False)
    images, labels = torch.stack([data[i][0] for i in range(6)]), data.labels[:6]
    options = {"num_classes": 10, "in_channels": 1}
    nets = {name: dla.create_model(name, pretrained_path=path, **options) for name, path in checkpoints.items()}
    return nets, images, labels


def test_heat_maps_show_the_squares_below_the_diagonal(trained):
    nets, images, _ = trained
    with torch.no_grad(), analysis.record(nets["dla_base_resnet20"].eval()) as found:
        nets["dla_base_resnet20"](images)
    squares = {name: stage.mean_scores for name, stage in found.stages.items()}
    figure = analysis.draw_scores(squares)
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
    assert list(shown) == list(squares)
    for name, square in squares.items():
        assert shown[name].mask.tolist() == [[False, True], [False, False]]
        torch.testing.assert_close(torch.from_numpy(shown[name].filled(0)), square)
    figure = analysis.draw_gini({"layer1": torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, 1, 0]])})
    assert figure.axes[0].images[0].get_array().mask.tolist() == [[True] * 3, [False, True, True], [False, False, True]]


def test_gradients_are_drawn_for_each_stage_and_network_on_one_scale(trained):
    nets, images, labels = trained
    found = {name: analysis.gradients(net, images, labels) for name, net in nets.items()}
    figure = analysis.draw_gradients(found, bins=10)
    assert [axes.get_title() for axes in figure.axes] == ["layer1", "layer2", "layer3"]
    for axes, stage in zip(figure.axes, ("layer1", "layer2", "layer3")):
        limit = 3 * max(g[stage].square().mean().sqrt() for g in found.values())
        assert [patch.get_label() for patch in axes.patches] == list(NAMES)
        for patch, name in zip(axes.patches, NAMES):
            torch.testing.assert_close(torch.from_numpy(patch.get_data().edges)[-1].double(), limit.double())
            expected = analysis.distribution(found[name][stage], limit.item(), 10)
            torch.testing.assert_close(torch.from_numpy(patch.get_data().values), expected, rtol=1e-4, atol=0.02)


def test_cams_are_drawn_over_their_images(trained):
    nets, images, labels = trained
    cams = {name: analysis.grad_cam(net, images, labels) for name, net in nets.items()}
    figure = analysis.draw_cams(images, cams, [str(label) for label in labels.tolist()])
    rows = [figure.axes[i : i + 6] for i in range(0, 24, 6)]
    assert [axes.get_title() for axes in rows[0]] == [str(label) for label in labels.tolist()]
    for row, (name, cam) in zip(rows[1:], cams.items()):
        assert row[0].get_ylabel() == name
        for axes, one in zip(row, cam):
            torch.testing.assert_close(torch.from_numpy(axes.images[1].get_array().filled(torch.nan)), one)


def test_accuracies_are_drawn_over_depth():
    results = [("dla_light_resnet56", 0.5), ("dla_light_resnet20", 0.4), ("resnet20", 0.2), ("dla_light_resnet56", 0.7)]
    (axes,) = analysis.draw_depths(analysis.Result(*result) for result in results).axes
    drawn = {container.get_label(): container[0].get_xydata().tolist() for container in axes.containers}
    assert drawn == {"dla_light_resnet": [[20, 40], [56, 60]], "resnet": [[20, 20]]}
    (bars,) = axes.containers[0][2]
    assert [round(y) for y in bars.get_segments()[1][:, 1]] == [50, 70]


# ---- what goes wrong ----


def failing(capsys, *words):
    """Return the one line that a command which fails prints."""
    assert cli.main(["analyze", *map(str, words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def saved(path, held):
    torch.save(held, path)
    return path


def changed(checkpoint, **new):
    return torch.load(checkpoint, weights_only=True) | new


WRONG = {
    "no file": (lambda at, good: at / "none.pt", r"none.pt: expected a checkpoint such as last.pt, got: No such file"),
    "a folder": (lambda at, good: at, "expected a checkpoint such as last.pt, got: Is a directory"),
    "no checkpoint": (
        lambda at, good: (at / "a.pt").write_text("hello") and at / "a.pt",
        "that torch.load does not read",
    ),
    "half of one": (
        lambda at, good: (at / "a.pt").write_bytes(good.read_bytes()[:5000]) and at / "a.pt",
        "is it whole",
    ),
    "code": (lambda at, good: saved(at / "a.pt", {"model": Evil()}), "does not read with weights_only=True"),
    "a state dict": (
        lambda at, good: saved(at / "a.pt", changed(good)["model"]),
        "a.pt: expected a dict with the state dict 'model', the 'name' that .*, and its 'options', got 'conv1",
    ),
    "no name": (lambda at, good: saved(at / "a.pt", {"model": {}}), "got name None and options {}"),
    "another name": (
        lambda at, good: saved(at / "a.pt", changed(good, name="vgg")),
        "expected a name such as .* got 'vgg'",
    ),
    "an option": (lambda at, good: saved(at / "a.pt", changed(good, options={"a": 1})), "options: expected some of"),
    "other weights": (
        lambda at, good: saved(at / "a.pt", changed(good, name="dla_light_resnet56")),
        "a.pt: expected the weights of a dla_light_resnet56, got others: Missing key",
    ),
    "other classes": (
        lambda at, good: saved(at / "a.pt", changed(good, options={"in_channels": 1, "num_classes": 7})),
        "checkpoint: expected a classifier of 7 classes, got one of 10",
    ),
    "nan": (
        lambda at, good: saved(
            at / "a.pt", changed(good, model=changed(good)["model"] | {"fc.bias": torch.full((10,), torch.nan)})
        ),
        "a.pt: expected finite weights, got others in fc.bias; its training has diverged",
    ),
    "no data": (
        lambda at, good: saved(at / "a.pt", changed(good, data=None)),
        "--data: expected synthetic, digits or a path",
    ),
    "other images": (
        lambda at, good: saved(at / "a.pt", changed(good, data="synthetic")),
        "--data: expected images of 1 channels and 10 classes for dla_light_resnet20, got 3 and 10 in synthetic",
    ),
    "missing images": (lambda at, good: saved(at / "a.pt", changed(good, data="/nowhere")), "there is no /nowhere"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_checkpoint_is_one_line(checkpoints, tmp_path, monkeypatch, capsys, wrong):
    make, words = WRONG[wrong]
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path, checkpoints[NAMES[0]])
    line = failing(capsys, path, "--out", tmp_path / "out")
    assert line.startswith("analyze: ")
    assert re.search(words, line), line
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()


def test_what_is_not_installed_or_not_here_is_one_line(checkpoints, tmp_path, monkeypatch, capsys):
    given = [checkpoints[NAMES[0]], "--out", tmp_path / "out"]
    (tmp_path / "file").write_text("")
    assert "File exists" in failing(capsys, given[0], "--out", tmp_path / "file")
    assert "--device: expected one that is here, such as cpu, got 'abacus'" in failing(
        capsys, *given, "--device", "abacus"
    )
    assert "--device: expected one that is here, such as cpu, got 'meta'" in failing(capsys, *given, "--device", "meta")
    for module, words in (
        ("sklearn", "scikit-learn, or leave gini out by --figures"),
        ("matplotlib", "pip install matplotlib"),
    ):
        monkeypatch.setattr(command, "find_spec", lambda name, module=module: None if name == module else object())
        assert words in failing(capsys, *given)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"figures: expected matplotlib, .* pip install matplotlib"):
        analysis.draw_gini({"layer1": torch.zeros(2, 2)})
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ImportError, match=r"gini: expected scikit-learn, .* pip install scikit-learn"):
        analysis.gini(torch.rand(3, 4, 2))


def test_memory_that_runs_out_is_one_line(checkpoints, tmp_path, monkeypatch, capsys):
    def full(subjects, numbers):
        raise torch.OutOfMemoryError("CUDA out of memory.\nIt was tried to allocate much.")

    monkeypatch.setitem(command.STUDIES, "cam", full)
    line = failing(capsys, checkpoints[NAMES[0]], "--out", tmp_path, "--figures", "cam")
    assert line == "analyze: CUDA out of memory. A smaller --batch takes less."


def test_nothing_that_figures_need_is_imported_with_the_package():
    program = "import sys, dla_kernels.__main__; print({'matplotlib', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "words",
    [["--figures", "scores,poem"], ["--images", "1"], ["--trees", "0"], ["--seed", "x"]],
    ids=lambda words: " ".join(words),
)
def test_wrong_options_are_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["analyze", "last.pt", "--out", str(tmp_path), *words])
    assert stop.value.code == 2
    assert f"argument {words[0]}: expected " in capsys.readouterr().err


def test_of_a_transformer_there_is_what_it_has(tmp_path, capsys):
    options = {"num_classes": 10, "in_channels": 1, "img_size": 8, "patch_size": 4}
    net = dla.create_model("mrla_base_deit_tiny", **options)
    held = {"model": net.state_dict(), "name": "mrla_base_deit_tiny", "options": options, "data": "digits"}
    words = [saved(tmp_path / "vit.pt", held), "--out", tmp_path / "out", "--images", 2]
    assert cli.main(["analyze", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert (
        "none: mrla_base_deit_tiny ends in tokens" in printed
        and "mrla_base_deit_tiny does not say its depth" in printed
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"scores-mrla_base_deit_tiny.png", "gradients.png", "numbers.json"}
    assert 0 <= json.loads((tmp_path / "out/numbers.json").read_text())["mrla_base_deit_tiny"]["accuracy"] <= 1


def test_a_run_is_looked_at_as_it_was_tested(checkpoints, tmp_path, capsys):
    """With the average of its weights where it has one, and images of its size."""
    held = torch.load(checkpoints[NAMES[0]], weights_only=True)
    held["ema"] = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in held["model"].items()}}
    held["model"] = {key: torch.zeros_like(value) for key, value in held["model"].items()}
    path = saved(tmp_path / "averaged.pt", held)
    found = {}
    for given in (path, checkpoints[NAMES[0]]):
        assert cli.main(["analyze", str(given), "--out", str(tmp_path / "out"), "--figures", "depth"]) == 0
        capsys.readouterr()
        found[given] = json.loads((tmp_path / "out/numbers.json").read_text())[NAMES[0]]["accuracy"]
    assert found[path] == found[checkpoints[NAMES[0]]] > 0.2

    options = {"num_classes": 10, "in_channels": 1, "img_size": 16, "patch_size": 8}
    net = dla.create_model("deit_tiny", depth=1, **options)
    held = {"model": net.state_dict(), "name": "deit_tiny", "options": {"depth": 1, **options}, "data": "digits"}
    words = [saved(tmp_path / "vit.pt", held), "--out", tmp_path / "vit", "--figures", "gradients"]
    assert "analyze: --size: expected 16, of which deit_tiny takes images, got 8 in digits" in failing(capsys, *words)
    saved(tmp_path / "vit.pt", held | {"settings": {"size": 16}})
    assert cli.main(["analyze", *map(str, words)]) == 0


def test_some_figures_alone(checkpoints, tmp_path, capsys):
    plain = dla.create_model("resnet20", num_classes=10, in_channels=1)
    held = {"model": plain.state_dict(), "name": "resnet20", "options": {"num_classes": 10, "in_channels": 1}}
    torch.save(held, tmp_path / "plain.pt")
    words = [
        tmp_path / "plain.pt",
        "--data",
        "digits",
        "--out",
        tmp_path / "out",
        "--figures",
        "depth,scores",
        "--images",
        2,
    ]
    assert cli.main(["analyze", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "none: resnet20 has no layer attention" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"depth.png", "numbers.json"}
