"""The schedules of one measure as points of a plot, and how each kind of schedule is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from eval.comparison import Comparison, Measure, Measured, Row, Shape
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
    """Against mean na, on the baseline's weights, in the comparison's order, `full` first.

    Empty where nothing was measured, and where all other schedules ran under plans.
    """
    if getattr(comparison.baseline, measure) is None or not shows_mean_na(comparison):
        return []
    return [make_point(comparison, row, measure, row.mean_na) for row in comparison.unpruned]


def shows_mean_na(comparison: Comparison) -> bool:
    """Whether plots against mean na have anything to show: more than one point, or no plans at all."""
    return len(comparison.unpruned) > 1 or not comparison.has_plans


def make_point(comparison: Comparison, row: Row, measure: Measure, x: float) -> Point:
    """The schedule's point at `x`."""
    full: Measured = getattr(comparison.baseline, measure)
    measured: Measured = getattr(row, measure)
    interval = around(full.estimate.value, measured)
    shows = interval is not None and (len(comparison.rows) <= FEW or measured.on_front)
    return Point(row, measured, x, measured.estimate.value, interval, shows)


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
