"""Ticks and scales of plots."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sglang_moe_opt.report.axes import (
    NARROW,
    WIDE,
    Size,
    frame,
    levels,
    linear,
    log_between,
    logarithmic,
    number,
    ticks,
)

PAPER = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 784)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 6, 6) == [0, 1, 2, 3, 4, 5, 6]
    assert ticks(1.534, 1.583, 5) == pytest.approx([1.54, 1.55, 1.56, 1.57, 1.58])
    assert ticks(5, 5, 4)


def test_a_ticks_text_has_the_decimals_that_it_needs() -> None:
    assert [number(tick, [0, 2500, 5000]) for tick in (0, 2500)] == ["0", "2,500"]
    assert number(1.25, [1.25, 1.5]) == "1.25"


def test_a_linear_axis_holds_every_value() -> None:
    axis = linear("y", [0.3, 7.9], (100, 0))
    assert 0 <= axis.scale(7.9) < axis.scale(0.3) <= 100
    assert linear("y", [5], (100, 0)).marks


@pytest.mark.parametrize(("low", "high"), [(3, 90), (0.5, 21000), (1, 1e9)])
def test_a_logarithmic_axis_has_few_round_ticks(low: float, high: float) -> None:
    axis = logarithmic("ms", [low, high], (0, 100))
    values = [value for value, _ in axis.marks]
    assert 2 <= len(values) <= 10
    assert all(low <= value <= high for value in values)
    assert axis.scale(low) == pytest.approx(0)
    assert axis.scale((low * high) ** 0.5) == pytest.approx(50)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_levels_have_a_tick_each_and_texts_apart(size: Size) -> None:
    axis = levels("users", PAPER, size.across)
    assert [value for value, _ in axis.marks] == list(PAPER)
    shown = [(axis.scale(value), len(text)) for value, text in axis.marks if text]
    assert all(b - a > 3.3 * (m + n) for (a, m), (b, n) in pairwise(shown))
    assert {"2", "784"} <= {text for _, text in axis.marks}
    assert len(shown) >= 7


def test_a_single_level_stands_in_the_middle() -> None:
    assert levels("users", [16], (0, 100)).scale(16) == pytest.approx(50)
    assert log_between((4, 4), (0, 100))(4) == pytest.approx(50)


def test_the_frame_escapes_its_labels() -> None:
    x, y = linear("a < b", [0, 1], WIDE.across), linear("y", [0, 1], WIDE.up)
    assert "a &lt; b" in "".join(frame(x, y, WIDE))
