"""A table trains what is missing, once, and says what the runs are worth."""

import sys

import pytest

from recipes import results, settings, table
from recipes import run as runs
from recipes.checkpoint import Diverged
from recipes.results import Outcome, Results
from recipes.settings import Recipe
from recipes.table import Line

from .training import raise_sigterm, stop_at

MODELS = "resnet20,dla_light_resnet20"


def options(out, *more):
    plain = ["--recipe", "dla-cifar", "--data", "synthetic", "--epochs", "1", "--set", "batch=20", "--out", str(out)]
    return [*plain, *more]


def lines_of(**accuracies):
    return [
        Line(model, [Outcome("cifar100", i, 1_234_567, a, a, 1.0) for i, a in enumerate(found)])
        for model, found in accuracies.items()
    ]


def test_a_table_trains_what_is_missing_and_nothing_twice(few_images, monkeypatch, capsys, tmp_path):
    trained, run = [], table.run

    def counted(recipe, model, data, *, seed, **more):
        trained.append((model, seed))
        return run(recipe, model, data, seed=seed, **more)

    monkeypatch.setattr(table, "run", counted)
    assert table.main(options(tmp_path, "--models", MODELS, "--seeds", "1")) == 0
    assert trained == [("resnet20", 0), ("dla_light_resnet20", 0)]
    assert table.main(options(tmp_path, "--models", MODELS, "--seeds", "2")) == 0
    assert trained[2:] == [("resnet20", 1), ("dla_light_resnet20", 1)]
    capsys.readouterr()
    assert table.main(options(tmp_path, "--models", MODELS, "--seeds", "2")) == 0
    assert len(trained) == 4
    said = capsys.readouterr().out
    assert (tmp_path / "table-dla-cifar.md").read_text() in said
    assert (tmp_path / "table-dla-cifar.png").read_bytes()[1:4] == b"PNG"
    recipe = settings.load("dla-cifar").with_changes({"epochs": 1, "batch": 20})
    with Results(tmp_path / "results.sqlite") as found:
        kept = found.of(recipe, "resnet20", "synthetic")
        assert found.of(recipe.with_changes({"lr": 0.2}), "resnet20", "synthetic") == {}
    mean = 50 * (kept[0].last + kept[1].last)
    assert f"| resnet20 | 0.22 | 2 | {mean:.2f} ± " in said


def test_a_stopped_table_goes_on_where_it_was(few_images, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        stop_at(patched, 1, raise_sigterm)
        assert table.main(options(tmp_path, "--models", "resnet20", "--seeds", "1")) == 143
    begun, load = [], runs.checkpoint.load
    monkeypatch.setattr(runs.checkpoint, "load", lambda folder: begun.append(load(folder)["step"]) or load(folder))
    assert table.main(options(tmp_path, "--models", "resnet20", "--seeds", "1")) == 0
    assert begun == [1]


def test_a_run_that_diverges_is_counted_and_left_out_of_the_mean(few_images, monkeypatch, capsys, tmp_path):
    def diverging(recipe, model, data, *, seed, **_):
        if seed == 1:
            raise Diverged("expected a finite loss")
        return runs.Result([{"test_accuracy": 0.5, "seconds": 1.0}], None)

    monkeypatch.setattr(table, "run", diverging)
    assert table.main(options(tmp_path, "--models", "resnet20", "--seeds", "2")) == 0
    assert "| resnet20 | 0.22 | 2, 1 diverged | 50.00 |" in capsys.readouterr().out


def test_means_deviations_and_the_paper_s_figures_stand_beside_each_other():
    stats = pytest.importorskip("scipy.stats")
    a, b = [0.70, 0.71, 0.72], [0.73, 0.75, 0.74]
    recipe = Recipe(name="mine", table="Table 9", figures={"cifar100": {"second": 74.2}, "cifar10": {"first": 90.0}})
    text = table.markdown(lines_of(first=a, second=b), recipe)
    p = stats.ttest_ind(b, a).pvalue
    assert "| first | 1.23 | 3 | 71.00 ± 1.00 | 71.00 ± 1.00 |  | - |" in text
    assert f"| second | 1.23 | 3 | 74.00 ± 1.00 | 74.00 ± 1.00 | {p:.2g} | 74.20 |" in text
    assert "Recipe mine (Table 9), 1 epochs, on cifar100" in text and "against first" in text


@pytest.mark.parametrize("values, p", [(([70.0], [71.0, 72.0]), "-"), (([70.0, 70.0], [70.0, 70.0]), "-")])
def test_where_there_is_no_deviation_there_is_no_p(values, p):
    pytest.importorskip("scipy")
    assert table.p_value(*values) == p


def test_the_figure_has_every_run_and_the_paper_s_figures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, *a, **k: drawn.append(y) or plot(self, x, y, *a, **k))
    recipe = Recipe(name="mine", figures={"cifar100": {"second": 74.2}})
    assert table.draw(lines_of(first=[0.5, 0.75], second=[None]), recipe, tmp_path / "it.png")
    assert drawn[:1] == [[50.0, 75.0]] and 74.2 in drawn
    assert (tmp_path / "it.png").read_bytes()[1:4] == b"PNG"


def test_every_network_is_looked_at_before_the_first_is_trained(few_images, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(table, "run", None)
    assert table.main(options(tmp_path, "--models", "resnet20,dia_resnet21")) == 1
    assert "recipes.table: model dia_resnet21: name: expected a name" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert table.main(options(tmp_path, "--models", MODELS, "--seeds", "2")) == 1
    assert "it needs scipy" in capsys.readouterr().err


def test_other_results_are_refused(monkeypatch, tmp_path, capsys):
    connect = results.sqlite3.connect
    (tmp_path / "results.sqlite").write_text("no database, but long enough to be taken for one " * 10)
    assert table.main(options(tmp_path, "--models", MODELS)) == 1
    assert "expected a file of results" in capsys.readouterr().err
    with Results(tmp_path / "locked" / "results.sqlite") as other:
        other.base.execute("BEGIN EXCLUSIVE")
        with monkeypatch.context() as patched:
            patched.setattr(results.sqlite3, "connect", lambda path: connect(path, timeout=0))
            assert table.main(options(tmp_path / "locked", "--models", MODELS)) == 1
    assert "it cannot be used (database is locked); the same command" in capsys.readouterr().err
    (tmp_path / "no" / "results.sqlite").mkdir(parents=True)
    assert table.main(options(tmp_path / "no", "--models", MODELS)) == 1
    assert "it cannot be used (unable to open database file)" in capsys.readouterr().err
    assert table.main(options(tmp_path / "other", "--models", ",")) == 1
    assert "at least one of each" in capsys.readouterr().err


def test_a_table_is_one_process_s(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert table.main(options(tmp_path, "--models", MODELS)) == 1
    assert capsys.readouterr().err.startswith("recipes.table (process 1): expected one process")


def test_a_run_has_a_folder_for_each_way_to_train():
    recipe, other = Recipe(name="a"), Recipe(name="a", lr=0.2)
    names = {results.folder_of(r, "m", d, s) for r in (recipe, other) for d in "xy" for s in (0, 1)}
    assert len(names) == 8
    assert results.folder_of(Recipe(name="a", workers=3), "m", "x", 0) in names
