"""Unified diffs: parsed, applied at exactly the lines that they name, and reversed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

_HUNK_HEADER: Final = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class PatchError(RuntimeError):
    """The patches do not fit the files; the message names the file, what was expected and what was found."""


@dataclass(frozen=True)
class Hunk:
    """One run of changed lines. Starts are 0-based; lines keep their line ends."""

    old_start: int
    old: tuple[bytes, ...]
    new_start: int
    new: tuple[bytes, ...]

    def reversed(self) -> Hunk:
        return Hunk(self.new_start, self.new, self.old_start, self.old)


@dataclass(frozen=True)
class FileDiff:
    path: str
    hunks: tuple[Hunk, ...]

    def reversed(self) -> FileDiff:
        return FileDiff(self.path, tuple(hunk.reversed() for hunk in self.hunks))

    def apply(self, content: bytes) -> bytes:
        """The content with every hunk applied at exactly the line it names.

        Raises:
            PatchError: a hunk's old lines are not there.
        """
        lines = _lines(content)
        result: list[bytes] = []
        position = 0
        for hunk in self.hunks:
            end = hunk.old_start + len(hunk.old)
            if hunk.old_start < position or tuple(lines[hunk.old_start : end]) != hunk.old:
                raise PatchError(f"{self.path}: line {hunk.old_start + 1} is not what the patch expects there")
            result += lines[position : hunk.old_start]
            result += hunk.new
            position = end
        return b"".join(result + lines[position:])


def parse_diff(data: bytes, name: str = "patch") -> tuple[FileDiff, ...]:
    """Parse a unified diff; text before the first `---` line is its description.

    Raises:
        PatchError: the diff is malformed, or creates or deletes a file.
    """
    lines = _lines(data)
    diffs: list[FileDiff] = []
    at = 0
    while at < len(lines):
        if lines[at].startswith(b"--- ") and at + 1 < len(lines) and lines[at + 1].startswith(b"+++ "):
            old, new = _diff_path(lines[at], name), _diff_path(lines[at + 1], name)
            if old != new:
                raise PatchError(f"{name}: renames {old} to {new}; a patch may only change a file")
            at += 2
            hunks: list[Hunk] = []
            while at < len(lines) and lines[at].startswith(b"@@ "):
                hunk, at = _parse_hunk(lines, at, name)
                hunks.append(hunk)
            if not hunks:
                raise PatchError(f"{name}: {old} has no hunk")
            diffs.append(FileDiff(old, tuple(hunks)))
        elif lines[at].startswith(b"@@ "):
            raise PatchError(f"{name}: line {at + 1}: a hunk without a file")
        else:
            at += 1
    if not diffs:
        raise PatchError(f"{name}: holds no unified diff")
    return tuple(diffs)


def _parse_hunk(lines: list[bytes], at: int, name: str) -> tuple[Hunk, int]:
    header = _HUNK_HEADER.match(lines[at])
    if header is None:
        raise PatchError(f"{name}: line {at + 1}: not a hunk header")
    old_start, old_count, new_start, new_count = (1 if field is None else int(field) for field in header.groups())
    first = at + 1
    at = first
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    touched: tuple[int, ...] = ()
    while at < len(lines):
        done = (len(sides[0]), len(sides[1])) == (old_count, new_count)
        tag, body = lines[at][:1], lines[at][1:]
        if tag == b"\\":  # "\ No newline at end of file" is about the line just read
            for side in touched:
                sides[side][-1] = sides[side][-1].removesuffix(b"\n")
        elif done:
            break
        elif tag in (b" ", b"-", b"+"):
            touched = {b" ": (0, 1), b"-": (0,), b"+": (1,)}[tag]
            for side in touched:
                sides[side].append(body)
        elif lines[at] in (b"\n", b"\r\n"):  # an empty context line whose blank an editor has removed
            touched = (0, 1)
            for side in touched:
                sides[side].append(lines[at])
        else:
            break
        at += 1
    if (len(sides[0]), len(sides[1])) != (old_count, new_count):
        raise PatchError(
            f"{name}: line {first}: the hunk says {old_count} old and {new_count} new lines, "
            f"and has {len(sides[0])} and {len(sides[1])}"
        )
    # A side without lines is numbered by the line before it.
    starts = (old_start - (old_count > 0), new_start - (new_count > 0))
    return Hunk(starts[0], tuple(sides[0]), starts[1], tuple(sides[1])), at


def _diff_path(header: bytes, name: str) -> str:
    text = header[4:].decode().split("\t")[0].strip()
    if text == "/dev/null":
        raise PatchError(f"{name}: creates or deletes a file; a patch may only change one")
    path = PurePosixPath(text)
    if path.parts[:1] in (("a",), ("b",)):
        path = PurePosixPath(*path.parts[1:])
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != ("sglang",):
        raise PatchError(f"{name}: {text}: paths go from sglang/ on")
    return str(path)


def _lines(content: bytes) -> list[bytes]:
    """Lines with their ends; unlike ``bytes.splitlines`` a lone carriage return ends none, as in a diff."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)
