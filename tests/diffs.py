"""Unified diffs for tests."""

from __future__ import annotations

import difflib
import re


def diff_of(path: str, before: bytes, after: bytes) -> str:
    """A unified diff as `git diff` writes it, the remark about a missing last line end included."""
    lines = []
    sides = [re.findall(rb"[^\n]*\n|[^\n]+", side) for side in (before, after)]  # a lone \r ends no line
    for line in difflib.diff_bytes(difflib.unified_diff, *sides, f"a/{path}".encode(), f"b/{path}".encode()):
        lines.append(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n")
    return b"".join(lines).decode()
