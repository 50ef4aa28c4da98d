"""The schedules of one measure as points of a plot against mean na, and how each kind of schedule is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from eval.compare import Comparison, Measured, Row, Shape
from eval.outputs.notes import Measure
from eval.statistics import Interval

FEW = 24
"""Up to so many schedules every interval is drawn; beyond it only those on the Pareto front, or nothing can be seen."""

COLORS: dict[Shape, str] = {
    "uniform": "#5f6673",
    "ascending": "#0b6fb8",
    "descending": "#c8500a",
    "mixed": "#a8479a",
    "dynamic": "#0a8263",
}
AXIS = {"average": "average score, %", "bits_per_byte": "bits per byte (less is better)"}


@dataclass(frozen=True)
class Point:
    """A schedule at (x, y); `interval` is that of the paired difference, put around full's value; None for `full`."""

    row: Row
    measured: Measured
    x: float
    y: float
    interval: Interval | None
    shows_interval: bool


def points(comparison: Comparison, measure: Measure) -> list[Point]:
    """Points in the comparison's order, `full` first; empty where nothing was measured."""
    full: Measured | None = getattr(comparison.baseline, measure)
    if full is None:
        return []
    few = len(comparison.rows) <= FEW
    found = []
    for row in comparison.rows:
        measured: Measured = getattr(row, measure)
        interval = around(full.estimate.value, measured)
        shows = interval is not None and (few or measured.on_front)
        found.append(Point(row, measured, row.mean_na, measured.estimate.value, interval, shows))
    return found


def front(found: list[Point]) -> list[Point]:
    """The Pareto front from few experts to many; `full` after others that are as good."""
    return sorted((p for p in found if p.measured.on_front), key=lambda p: (p.x, p.y, p.row.is_baseline))


def around(full: float, measured: Measured) -> Interval | None:
    """The interval of a difference from `full`, moved to where `full` is; None for `full` itself."""
    if measured.change is None:
        return None
    difference = measured.change.difference
    low, high = difference.interval.low, difference.interval.high
    if difference.unit == "points":
        return Interval(full + low, full + high)
    return Interval(full * (1 + low / 100), full * (1 + high / 100))
