"""Errors that name a field, and the values that they show."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError, show


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text() | st.binary(), st.lists))
def test_shown_values_are_one_short_ascii_line(value: object) -> None:
    text = show(value)
    assert len(text) <= 80 and text.isascii() and text.isprintable()


def test_shown_values_of_any_size_cost_little() -> None:
    assert show([0] * 10**6) == "a list of 1000000 items"
    assert show(10**10000) == "an integer of 33220 bits"
    assert show({str(i): i for i in range(1000)}) == "an object of 1000 keys"
    assert len(show("x\n" * 10**6)) == 80


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(FieldError("na", "x", "an integer")))
    assert (error.field, error.value, error.allowed) == ("na", "x", "an integer")
    assert str(error) == "na: got 'x', allowed: an integer"
