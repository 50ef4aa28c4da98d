"""Loads and the order of measuring."""

from __future__ import annotations

import pytest

from loadtest.load import PAPER_LEVELS, Load, in_turns, parse_levels
from sglang_moe_opt.fields import FieldError


@pytest.mark.parametrize("load", [Load("closed", 16), Load("poisson", 2.5), Load("trace", 0.5)])
def test_a_label_says_what_it_is(load: Load) -> None:
    assert Load.parse(load.label) == load
    assert load.concurrency == (16 if load.kind == "closed" else None)


@pytest.mark.parametrize("label", ["", "16", "c0", "c-1", "rate", "d4"])
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(FieldError, match="load: got"):
        Load.parse(label)


def test_levels_are_taken_once_and_in_order() -> None:
    assert parse_levels("--concurrency", "2, 16,2", "closed") == [Load("closed", 2), Load("closed", 16)]
    assert parse_levels("--rate", "0.5,4", "poisson") == [Load("poisson", 0.5), Load("poisson", 4)]


@pytest.mark.parametrize("text", ["", "0", "1.5", "a", "-2", "5000", "1,,2", "nan", "inf"])
def test_bad_levels_are_named(text: str) -> None:
    with pytest.raises(FieldError, match=r"--concurrency: got .* allowed: whole numbers from 1 to 4096"):
        parse_levels("--concurrency", text, "closed")


def test_every_arm_meets_every_load_in_turns() -> None:
    a, b = Load("closed", 1), Load("closed", 2)
    assert in_turns(["x", "y"], [a, b], 2) == [
        (1, a, "x"),
        (1, a, "y"),
        (1, b, "x"),
        (1, b, "y"),
        (2, a, "y"),
        (2, a, "x"),
        (2, b, "y"),
        (2, b, "x"),
    ]


def test_the_papers_levels() -> None:
    assert len(PAPER_LEVELS) == 17
    assert PAPER_LEVELS[0] == 2
    assert PAPER_LEVELS[-1] == 784
