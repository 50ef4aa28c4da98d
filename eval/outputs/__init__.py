"""What a comparison is written as: one file per format, each a function of the comparison alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eval.comparison import Comparison
from eval.outputs import csv, html, json, markdown, png

Writer = Callable[[Comparison, Path], list[Path]]

WRITERS: tuple[Writer, ...] = (json.write, csv.write, markdown.write, html.write, png.write)

__all__ = ["WRITERS", "Writer", "write_all"]


def write_all(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every format into the folder and return the files."""
    return [path for write in WRITERS for path in write(comparison, folder)]
