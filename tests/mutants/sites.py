"""This module finds where one token of a source can be changed into another that still makes sense."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
AREAS = ("csrc/cells", "csrc/cpu", "csrc/cuda", "triton_ops", "dla_kernels/ops")

SWAPS = {"+": "-", "*": "/", "<": "<=", ">": ">=", "==": "!=", "&&": "||", "&": "|", "<<": ">>", "+=": "-=", "*=": "/="}
SWAPS |= {"and": "or", "True": "False", "true": "false", "min": "max", "minimum": "maximum", "is": "is not"}
SWAPS |= {new: old for old, new in SWAPS.items()} | {"%": "/", "//": "*"}
UNARY = ("!", "-", "not ")  # what stands before an operand is left out
NUMBER = re.compile(r"(\d+)((?:\.\d*)?(?:e-?\d+)?f?)")


class Site(NamedTuple):
    """A site is one change: the characters from ``begin`` to ``end`` of a file become ``new``."""

    file: str
    begin: int
    end: int
    new: str

    def changed(self, text):
        return text[: self.begin] + self.new + text[self.end :]

    def told(self, text):
        """Return the line around the change, as numbers do not last: ``csrc/cpu/mix.cpp: c [< -> <=] C; ++c) {``."""
        first, last = text.rfind("\n", 0, self.begin) + 1, text.find("\n", self.end)
        before, old, after = text[first : self.begin].lstrip(), text[self.begin : self.end], text[self.end : last]
        return f"{self.file}: {before[-60:]}[{old} -> {self.new or 'nothing'}]{after[:50]}"


def replaced(token):
    """Return what stands in place of the token, or None."""
    if number := NUMBER.fullmatch(token):
        return str(int(number[1]) + 1) + number[2]
    return SWAPS.get(token)


# ---- C++ ----

# What no change is made in: comments, strings, characters, directives of the preprocessor, checks at compile time.
_TEXT = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
_EARLY = r"^ *#(?:[^\n]*\\\n)*[^\n]*|\bstatic_assert\([^;]*;"
QUIET = re.compile(f"{_TEXT}|{_EARLY}", re.DOTALL | re.MULTILINE)
# Operators stand between spaces, as clang-format puts them; brackets of templates, pointers and references do not.
_BINARY = r"(?<= )(?:[-+*/%<>&|]|[<>=!]=|&&|\|\||<<|>>|[-+*/]=)(?= )"
_OTHER = rf"(?<=[ (,])(?P<unary>[-!])(?=[\w(])|(?<![\w.]){NUMBER.pattern}(?![\w.])|\b(?:true|false|min|max)\b"
CPP_TOKEN = re.compile(f"{_BINARY}|{_OTHER}")


def cpp_sites(file, text):
    audible = QUIET.sub(lambda quiet: " " * len(quiet[0]), text)
    for match in CPP_TOKEN.finditer(audible):
        yield Site(file, match.start(), match.end(), "" if match["unary"] else replaced(match[0]))


# ---- Python ----


def python_sites(file, text):
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line, column):  # sources are ASCII here but for comments and docstrings
        return starts[line - 1] + len(text[starts[line - 1] :].encode()[:column].decode(errors="ignore"))

    def begin(node):
        return place(node.lineno, node.col_offset)

    def end(node):
        return place(node.end_lineno, node.end_col_offset)

    def between(left, right):
        """Yield the change of the operator between two operands."""
        first, last = end(left), begin(right)
        token = re.search(r"is not|not in|\bin\b|\w+|[^\s\w()#\\]+", text[first:last])
        if token and token[0] in SWAPS:
            yield Site(file, first + token.start(), first + token.end(), replaced(token[0]))

    for node in _visible(ast.parse(text)):
        if isinstance(node, ast.BinOp):
            yield from between(node.left, node.right)
        elif isinstance(node, ast.AugAssign):
            yield from between(node.target, node.value)
        elif isinstance(node, ast.Compare):
            for left, right in zip([node.left, *node.comparators], node.comparators):
                yield from between(left, right)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:]):
                yield from between(left, right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            token = next(token for token in UNARY if text.startswith(token, begin(node)))
            yield Site(file, begin(node), begin(node) + len(token), "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            yield Site(file, begin(node), end(node), replaced(text[begin(node) : end(node)]))
        elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
            yield Site(file, end(node) - len(node.attr), end(node), replaced(node.attr))
        elif isinstance(node, ast.Name) and node.id in SWAPS:
            yield Site(file, begin(node), end(node), replaced(node.id))


def _visible(node):
    """Yield all nodes but types, which nobody runs, and the texts of errors."""
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _visible(child)


# ---- all of them ----


def sites_of(file):
    text = (ROOT / file).read_text()
    sites = (python_sites if file.endswith(".py") else cpp_sites)(file, text)
    return sorted(site for site in sites if site.new is not None)


def all_sites():
    """Return the sites of each area, in the order of files and places."""
    return {
        area: [
            site
            for path in sorted((ROOT / area).rglob("*"))
            if path.suffix in {".py", ".h", ".cpp", ".cuh", ".cu"} and path.name != "torch_cuda_stub.cpp"
            for site in sites_of(path.relative_to(ROOT).as_posix())
        ]
        for area in AREAS
    }
