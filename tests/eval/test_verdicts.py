"""The words of a verdict, for differences given by their numbers."""

from __future__ import annotations

from typing import Any

import pytest

from eval.statistics import Difference, Interval
from eval.verdicts import verdict


def points(value: float, half: float, p: float, **others: Any) -> Difference:
    return difference(value, half, p, unit="points", **others)


def percent(value: float, half: float, p: float, **others: Any) -> Difference:
    return difference(value, half, p, unit="percent", **others)


def difference(value: float, half: float, p: float, **others: Any) -> Difference:
    interval = Interval(value - half, value + half)
    numbers = {"error": half / 1.96, "bootstrap": interval, "items": 570, "better": 14, "worse": 26} | others
    return Difference(value=value, interval=interval, p=p, **numbers)


@pytest.mark.parametrize(
    ("found", "p_adjusted", "text"),
    [
        (points(-2.1, 0.5, 1e-6), None, "loss of 2.1 ± 0.5 points"),
        (points(1.3, 0.4, 1e-6), None, "gain of 1.3 ± 0.4 points"),
        (points(-0.1, 0.5, 0.7), None, "no loss detectable above 0.6 points"),
        (points(-0.12, 0.5, 0.7), None, "no loss detectable above 0.7 points"),
        (points(0.2, 0.6, 0.7), None, "no loss detectable above 0.4 points"),
        (points(0.0, 0.04, 1.0), None, "no loss detectable above 0.04 points"),
        (points(-0.06, 0.03, 1e-4), None, "loss of 0.06 ± 0.03 points"),
        (
            points(-1.2, 1.1, 0.03),
            0.5,
            "no loss detectable above 2.3 points (loss of 1.2 ± 1.1 before Holm's correction)",
        ),
        (points(1.2, 1.1, 0.03), 0.5, "no loss (gain of 1.2 ± 1.1 before Holm's correction)"),
        (points(-1.0, 1.1, 0.04), None, "no loss detectable above 2.1 points"),
        (percent(0.21, 0.08, 1e-7), None, "loss of 0.21 ± 0.08 %"),
        (percent(-0.4, 0.1, 1e-7), None, "gain of 0.40 ± 0.10 %"),
        (percent(0.02, 0.1, 0.7), None, "no loss detectable above 0.12 %"),
        (percent(0.0, 0.0, 1.0, better=0, worse=0), None, "identical on all 570 texts"),
    ],
)
def test_verdicts(found: Difference, p_adjusted: float | None, text: str) -> None:
    assert verdict(found, p_adjusted) == text
