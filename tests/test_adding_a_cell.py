"""The page on adding a cell is followed in a copy of the project, and the tests there are run for the new cell."""

import re

import pytest

from .mutants.trial import Tree
from .test_house import ROOT

PAGE = (ROOT / "docs/adding_a_cell.md").read_text()
NEW = re.findall(r"^New file `([\w/.]+)`:\n\n```\w+\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
ADDED = re.findall(r"^In `([\w/.]+)`, after `([^\n]+)`:\n\n```\w+\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
TESTS = ("cells_cpp", "house", "reference", "scan", "refresh", "layer_update", "light_step", "base_step", "gradcheck")


def test_a_cell_is_two_files_and_seven_lines():
    assert len(NEW) == 2
    assert len(ADDED) == 7


@pytest.mark.parametrize(("path", "after"), [(path, after) for path, after, _ in ADDED])
def test_the_line_after_which_the_page_adds_one_is_there(path, after):
    assert sum(after in line for line in (ROOT / path).read_text().splitlines()) >= 1


@pytest.mark.slow
def test_the_page_adds_a_cell_that_passes_the_tests(tmp_path):
    tree = Tree(tmp_path)
    tree.copy()
    for path, text in NEW:
        (tree.folder / path).write_text(text)
    for path, after, text in ADDED:
        lines = (tree.folder / path).read_text().splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if after in line)
        (tree.folder / path).write_text("".join([*lines[: at + 1], text, *lines[at + 1 :]]))
    tree.build_all()
    tree.clean = tree.build
    tree.take_clean_libraries()
    log = tmp_path / "log"
    with log.open("w") as out:
        chosen = ["--tier=fast", "--tier-seed=1", "-k", "mgu or cells_cpp or house"]
        files = [f"tests/test_{name}.py" for name in TESTS]
        done = tree.run("python", "-m", "pytest", "-p", "no:cacheprovider", *chosen, *files, log=out)
    assert done.returncode == 0, log.read_text()[-4000:]
    assert int(re.search(r"(\d+) passed", log.read_text())[1]) > 100
