"""The committed result files, and how their numbers are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


@lru_cache
def load(name: str) -> Any:
    """The JSON file of that path below docs/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@lru_cache
def load_csv(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a CSV file below docs/results, by its header."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as stream:
        return tuple(csv.DictReader(stream))


def pick(points: Iterable[Mapping[str, Any]], **wanted: Any) -> Any:
    """The one point with these values. Raises LookupError unless there is exactly one."""
    found = [point for point in points if all(point[key] == value for key, value in wanted.items())]
    if len(found) != 1:
        raise LookupError(f"{len(found)} points with {wanted}, expected one")
    return found[0]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    marks = [f"|{'|'.join(cells)}|" if index == 1 else f"| {' | '.join(cells)} |" for index, cells in enumerate(lines)]
    return "\n".join(marks)


def within(value: float, interval: Sequence[float], decimals: int = 2, more: int = 0) -> str:
    """`1.20 (1.13-1.26)`; `more` decimals of the value than of its interval."""
    low, high = interval
    return f"{value:.{decimals + more}f} ({low:.{decimals}f}-{high:.{decimals}f})"


def quartiles(spread: Mapping[str, Any], decimals: int = 2, more: int = 0) -> str:
    """Of a spread as `loadtest.results.spread` writes it."""
    return within(spread["median"], spread["quartiles"], decimals, more)


def half(interval: Sequence[float]) -> float:
    """Half of an interval's width."""
    low, high = interval
    return (high - low) / 2
