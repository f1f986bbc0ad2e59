"""Tables and progress bars that the command line prints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose columns are as wide as their widest cell; numbers stand to the right, words to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *(line(row) for row in cells)])


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items, with a bar on stderr where that is a terminal."""
    shown = sys.stderr.isatty()
    for done, item in enumerate(items):
        if shown:
            filled = 30 * done // len(items)
            print(f"\r{what} [{'#' * filled}{'.' * (30 - filled)}] {done}/{len(items)}", end="", file=sys.stderr)
        yield item
    if shown:
        print("\r" + " " * (len(what) + 50) + "\r", end="", file=sys.stderr)
