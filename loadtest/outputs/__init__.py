"""What an analysis is written as: one file per format, each a function of the analysis alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from loadtest.analysis import Analysis
from loadtest.outputs import csv, explained_png, html, json, markdown, memory_png, png

Writer = Callable[[Analysis, Path], list[Path]]

WRITERS: tuple[Writer, ...] = (
    json.write,
    csv.write,
    markdown.write,
    html.write,
    png.write,
    memory_png.write,
    explained_png.write,
)

__all__ = ["WRITERS", "Writer", "write_all"]


def write_all(analysis: Analysis, folder: Path) -> list[Path]:
    """Write every format into the folder and return the files."""
    return [path for write in WRITERS for path in write(analysis, folder)]
