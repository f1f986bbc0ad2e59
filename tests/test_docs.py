"""What the README, the docs and the docstrings show runs as shown."""

import dataclasses
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dla_kernels
from bench import run
from bench.report import render
from dla_kernels import __main__ as cli
from recipes import settings, table
from recipes import train as training

from .clients import import_those_named_in

ROOT = Path(__file__).parent.parent
RECIPES = {"recipes.train": training.parser, "recipes.table": table.parser}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def files_named(page):
    text = re.sub(r"^```.*?^```$|^New file .*?:$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:csrc|docs|dla_kernels|bench|tests|tools)/[\w/.]+\.\w+)`", text)
    return [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)] + [ROOT / name for name in named]


def names_placed(page):
    """Return the names that a page says are in a file, as in: `KINDS` in `dla_kernels/cells.py`."""
    return re.findall(r"`(\w+)`\s+in\s+`([\w/.]+\.\w+)`", page.read_text())


def commands(page):
    """Return the lines of a page's blocks that call the Makefile or Python."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [line for block in blocks for line in re.findall(r"^(?:make|python -m) .*", block, re.M)]


def pages_with(found):
    return pytest.mark.parametrize("page", list(filter(found, PAGES)), ids=lambda page: page.name)


@pages_with(python_blocks)
def test_python_blocks_run(page):
    import_those_named_in(page.read_text())
    names = {}
    for block in python_blocks(page):
        if "import " in block:  # one without goes on where the one before it ended
            names = {}
        exec(compile(block, str(page), "exec"), names)


@pages_with(files_named)
def test_links_and_files_exist(page):
    assert [str(path) for path in files_named(page) if not path.exists()] == []


@pytest.mark.parametrize("op", dla_kernels.ops.__all__)
def test_every_op_has_a_page(op):
    page = (ROOT / f"docs/ops/{op}.md").read_text()
    assert page.startswith(f"# {op}\n")
    assert f"::: dla_kernels.ops.{op}.{op}" in page
    assert f"ops/{op}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "DLABase" in (tmp_path / "api.html").read_text()  # the reference is there
    assert (tmp_path / "search" / "search_index.js").exists(), "search would need a server"


def test_the_performance_page_follows_from_the_results():
    assert render.stale() == [], "run: python -m dla_kernels bench render"


@pages_with(names_placed)
def test_names_are_in_the_files_they_are_said_to_be_in(page):
    assert [(name, file) for name, file in names_placed(page) if name not in (ROOT / file).read_text()] == []


@pages_with(commands)
def test_commands_shown_exist(page, monkeypatch, capsys):
    """The Makefile has the targets shown, and the command line the options."""
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
        elif words[:4] == ["python", "-m", "dla_kernels", "bench"]:
            monkeypatch.setattr("sys.argv", words[3:])
            run.arguments()
        elif words[:2] == ["python", "-m"] and words[2] in RECIPES:
            args = RECIPES[words[2]]().parse_args(words[3:])
            recipe = training.recipe_of(args)
            asked = args.models.split(",") if words[2] == "recipes.table" else [args.model or recipe.model]
            assert {*asked} <= {*dla_kernels.list_models()}, line
        elif words[:3] == ["python", "-m", "dla_kernels"]:
            with pytest.raises(SystemExit) as stop:
                cli.main([*words[3:], "--help"])
            assert stop.value.code == 0, line


DOCUMENTED = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in sorted((ROOT / "dla_kernels").rglob("*.py"))
    if "\n    >>> " in path.read_text() or "\n>>> " in path.read_text()
]


@pytest.mark.parametrize("module", DOCUMENTED)
def test_examples_in_docstrings_run(module):
    found = importlib.import_module(module)
    import_those_named_in(Path(found.__file__).read_text())
    results = doctest.testmod(found, extraglobs={"torch": torch, "dla_kernels": dla_kernels, **vars(dla_kernels.nn)})
    assert results.attempted > 0
    assert results.failed == 0


def test_the_training_page_has_every_recipe_and_every_key():
    page = (ROOT / "docs/training.md").read_text()
    for name in settings.names():
        recipe = settings.load(name)
        row = re.search(rf"^\| `{name}` \| (.*?) \| (\d+) \|", page, re.MULTILINE)
        assert row and (row[1], int(row[2])) == (recipe.table or "-", recipe.epochs), name
    keys = {field.name for field in dataclasses.fields(settings.Recipe)} - {"name"}
    assert keys <= {*re.findall(r"`(\w+)`", page)}


def test_every_command_has_help(capsys):
    for command in ([], ["info"], ["verify"], ["plan"], ["params"], ["analyze"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, "--help"])
        assert stop.value.code == 0
        assert "usage: python -m dla_kernels" in capsys.readouterr().out


def test_info_names_every_backend(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for name in dla_kernels.backends.NAMES:
        assert re.search(rf"^{name} ", printed, re.M)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"dla_kernels {dla_kernels.__version__}\n"


def test_bench_without_the_repository_says_where_it_is(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "BENCH", tmp_path / "bench" / "run.py")
    assert cli.main(["bench"]) == 1
    assert "part of the repository, not of the installed package" in capsys.readouterr().err


def test_the_version_is_the_same_wherever_it_stands():
    version = dla_kernels.__version__
    assert re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_citation_names_the_three_papers():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert [paper["year"] for paper in cited["references"]] == [2024, 2023, 2020]
    assert all(paper["title"] and paper["authors"] for paper in cited["references"])
