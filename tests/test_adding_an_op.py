"""The page on adding an op shows what stands in the files, and leaves out no place that knows all ops."""

import re
import subprocess

import pytest

from .test_house import FORWARD_OPS, ROOT

PAGE = (ROOT / "docs/adding_an_op.md").read_text()
SHOWN = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = re.findall(r"^\| `([\w/.]+)` \|", PAGE, re.MULTILINE)
TEXTS = (".py", ".md", ".yml", ".json", ".txt", ".cpp", ".h", ".cuh")
# Written by commands that the page names.
WRITTEN = ("bench/budgets.json", "tools/resources/", "docs/performance.md", "docs/cuda.md", "bench/results/")


@pytest.mark.parametrize(("path", "text"), SHOWN, ids=[path for path, _ in SHOWN])
def test_the_page_shows_what_stands_in_the_file(path, text):
    assert text in (ROOT / path).read_text()


def test_an_op_is_eleven_files_and_nine_lines():
    assert len(SHOWN) == 11
    assert 0 < len(LINES) <= 9
    for op in FORWARD_OPS:
        for path, _ in SHOWN:
            assert (ROOT / path.replace("rescale", op)).exists(), f"{op}: {path}"


@pytest.mark.parametrize("path", LINES)
def test_a_place_that_gets_a_line_names_the_op(path):
    assert re.search("rescale", (ROOT / path).read_text(), re.IGNORECASE)


def names_all_ops(text):
    return all(re.search(rf"(?<!\w){op}(?!\w)", text) for op in FORWARD_OPS)


def test_no_other_file_lists_all_ops():
    """A list that is not on the page is one that whoever adds an op would miss."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    read = [path for path in listed if path.endswith(TEXTS) and not path.startswith(WRITTEN) and (ROOT / path).exists()]
    found = {path for path in read if names_all_ops((ROOT / path).read_text())}
    assert found <= {*LINES, "tests/test_adding_an_op.py"}
    assert len(found) > 5, "lists of ops are found at all"
