"""The messages that the code can give, to check that a quoted one still exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from docgen.results import ROOT

SOURCES = ("sglang_moe_opt", "loadtest", "eval")
SCRIPTS = ("tools/install.sh", "tools/find_python.sh")
ALLOWED = ", allowed: "
LEAST, LEAST_ALLOWED = 12, 4  # letters of its own that a template needs to prove a whole message, or what is allowed

_FENCE = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SCRIPT_TEXT = re.compile(r'(?:fail|echo|say) "([^"]+)"')
_SCRIPT_VALUE = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+")
_VALUE = ".+?"

Parts = Sequence[str | None]
"""A text's literal parts; None where a value stands."""


def quoted(page: str) -> list[str]:
    """Every message that a page quotes: the lines of its blocks marked `text`."""
    return [line for block in _FENCE.findall(page) for line in block.splitlines() if line]


def is_message(line: str) -> bool:
    """Whether the code can say this: all of it, or, of a refused value, what is allowed in its place."""
    whole = _matching(line, LEAST)
    if ALLOWED not in line:
        return any(whole)
    said = any("allowed" in (part or "") for parts in whole for part in parts)
    return said or any(_matching(line.split(ALLOWED, 1)[1], LEAST_ALLOWED))


def _matching(line: str, least: int) -> Iterator[Parts]:
    """Every text in the sources with `least` letters or more that this can be, values being anything."""
    for parts in _all_texts():
        likely = _letters(parts) >= least and all(part is None or part in line for part in parts)
        if likely and _pattern(parts).fullmatch(line):
            yield parts


@lru_cache
def _all_texts() -> frozenset[tuple[str | None, ...]]:
    return frozenset(tuple(parts) for parts in _texts() if not (parts[0] or "").startswith("http"))


def _letters(parts: Parts) -> int:
    return sum(len(re.findall(r"\w", part or "")) for part in parts)


def _pattern(parts: Parts) -> re.Pattern[str]:
    # What a caller puts before a message (a field, a file) or behind it (the next sentence) is no part of its text.
    return re.compile("(?:.*: )?" + "".join(_VALUE if part is None else re.escape(part) for part in parts))


def _texts() -> Iterator[Parts]:
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield from _of_python(file)
    for name in SCRIPTS:
        for text in _SCRIPT_TEXT.findall((ROOT / name).read_text(encoding="utf-8")):
            literals = _SCRIPT_VALUE.split(text)
            yield [part for literal in literals for part in (literal, None)][:-1]


def _of_python(file: Path) -> Iterator[Parts]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.JoinedStr | ast.BinOp) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            parts = _parts(node)
            if any(parts):
                yield parts


def _parts(node: ast.expr) -> Parts:
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr(values=values):
            return [part for value in values for part in _parts(value)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_parts(left), *_parts(right)]
    return [None]
