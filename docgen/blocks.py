"""Marked blocks of a Markdown file, which a script fills.

<!-- table: NAME ARGUMENT ... -->
anything between the marks is replaced
<!-- /table -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Table = Callable[..., str]

_BLOCK = re.compile(r"^<!-- table: (?P<call>[^\n]+?) -->\n(?P<body>.*?)^<!-- /table -->", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"^<!-- /?table\b", re.MULTILINE)


class BlockError(ValueError):
    """A block that cannot be filled: the file, what is wrong, and what would be right."""


def fill(text: str, tables: Mapping[str, Table], file: str) -> str:
    """The text with every block made anew. Raises BlockError naming `file`."""
    if len(_MARK.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise BlockError(
            f"{file}: a table mark without its other half; <!-- table: NAME --> ... <!-- /table --> needed"
        )

    def render(match: re.Match[str]) -> str:
        name, *arguments = match["call"].split()
        if name not in tables:
            raise BlockError(f"{file}: no table {name!r}, allowed: {', '.join(sorted(tables))}")
        try:
            body = tables[name](*arguments)
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise BlockError(f"{file}: table {match['call']}: {type(error).__name__}: {error}") from error
        return f"<!-- table: {match['call']} -->\n{body.rstrip()}\n<!-- /table -->"

    return _BLOCK.sub(render, text)


def without_blocks(text: str) -> str:
    """What is left of a file for people to write."""
    return _BLOCK.sub("", text)
