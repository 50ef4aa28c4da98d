"""The time left by the points that were measured."""

from __future__ import annotations

from loadtest.load import Load
from loadtest.time_left import TimeLeft, clock


def test_nothing_is_claimed_before_the_first_point() -> None:
    assert TimeLeft(1, 100).of([(Load("closed", 1), "a")]) is None


def test_known_points_count_as_they_were_and_others_in_proportion() -> None:
    left = TimeLeft(2, 100)
    left.learn(Load("closed", 4), "a", 8)
    assert left.of([(Load("closed", 4), "a")]) == 8
    assert left.of([(Load("closed", 4), "b")]) == 8
    assert left.of([(Load("closed", 16), "a")]) == 32
    assert left.of([(Load("closed", 1000), "a")]) == 100, "a point is cut off at its limit"
    assert left.of([(Load("closed", 0.5), "a")]) == 2, "a point lasts that long at least"


def test_clock() -> None:
    assert clock(61) == "1:01"
    assert clock(3723) == "1:02:03"
