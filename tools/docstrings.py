"""Turn this project's docstrings into Markdown, for the site: doctests become code, lines of `name: meaning` a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"(?P<names>[a-zA-Z_][\w.]*(?:, [a-zA-Z_][\w.]*)*): ")


def markdown(text: str) -> str:
    """Return the docstring with its paragraphs as Markdown would have them."""
    return "\n\n".join(map(_paragraph, re.split(r"\n\s*\n", text)))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if lines and lines[0].startswith(">>>"):
        return "\n".join(["```pycon", *lines, "```"])
    out = []
    for line in lines:
        if found := ITEM.match(line):
            line = f"- **{found['names']}**: {line[found.end() :]}"
        elif line.startswith("Returns ") and out and out[0].startswith("- "):
            line = f"\n{line}"
        out.append(line)
    if out and not out[0].startswith("- "):  # a sentence before the list
        first = next((i for i, line in enumerate(out) if line.startswith("- ")), None)
        if first:
            out.insert(first, "")
    return "\n".join(out)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
