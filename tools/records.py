"""Records of what compilers said of the kernels, kept in tools/resources/ with a digest of all that they were given.

While that digest is the same, compiling again would say nothing new: tests/test_*_build.py take the record instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.resolve()
FOLDER = ROOT / "tools" / "resources"
PAGE = ROOT / "docs" / "performance.md"


class Record(NamedTuple):
    digest: str
    compiler: str  # its version
    rows: list[Any]  # each a NamedTuple of the tool's own
    parts: Mapping[str, str] = MappingProxyType({})  # digests of sources that are compiled by themselves

    def is_of(self, digest: str, compiler: str | None) -> bool:
        """Return whether compiling would say the same. Where there is no compiler, only the digest counts."""
        return self.digest == digest and compiler in (self.compiler, None)

    def prove(self, faults: list[Any], digest: str) -> None:
        """Exit where the rows have faults, or are of sources that changed while they were compiled."""
        if faults:
            sys.exit("\n".join(["not to be written, for:", *map(str, faults)]))
        if digest != self.digest:
            sys.exit("not to be written, for the sources changed meanwhile: run this again")

    def write(self, path: Path) -> None:
        """Write the record, a row a line."""
        rows = ",\n".join(map(json.dumps, self.rows))
        parts = json.dumps(dict(self.parts), indent=0)
        head = f'"digest": "{self.digest}", "compiler": "{self.compiler}"'
        path.write_text(f'{{{head}, "parts": {parts}, "rows": [\n{rows}\n]}}\n')


def read(path: Path, row: Any) -> Record:
    """Return the record in a file; without a file, a record of no sources."""
    if not path.exists():
        return Record("", "", [])
    said = json.loads(path.read_text())
    return Record(said["digest"], said["compiler"], [row(*values) for values in said["rows"]], said.get("parts", {}))


def digest(root: Path, files: Iterable[Path], *more: object) -> str:
    """Return a digest of the files' names below ``root``, what they hold, and what else decides what is compiled."""
    root = root.resolve()
    held = [(path.resolve().relative_to(root).as_posix(), path.read_bytes()) for path in sorted(files)]
    return hashlib.sha256(repr((held, more)).encode()).hexdigest()


def included(starts: Iterable[Path]) -> set[Path]:
    """Return the files and all that they include, directly or not, of the project's own."""
    found: set[Path] = set()
    todo = [path.resolve() for path in starts]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            named = re.findall(r'^ *#include "([^"]+)"', path.read_text(), re.MULTILINE)
            todo += [(path.parent / name).resolve() for name in named if (path.parent / name).exists()]
    return found


def write_section(text: str, title: str) -> None:
    """Write the text in place of the section of that title in the page, or at its end."""
    before, _, rest = PAGE.read_text().partition(title)
    following = rest.find("\n## ")
    PAGE.write_text(before.rstrip() + "\n\n" + text + (rest[following:] if following >= 0 else ""))
