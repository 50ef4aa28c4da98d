"""Plain schedules have the sum asked for, stay in bounds, and are what their names say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.search.candidate import Candidate, baselines, rounded_to, uniforms


def test_the_mini_models_plain_schedules() -> None:
    found = baselines(5, 20, 1, 6)
    assert [one.layers for one in found["uniform"]] == [(4, 4, 4, 4, 4)]
    assert [one.layers for one in found["ascending"]] == [(2, 3, 4, 5, 6), (3, 4, 4, 4, 5)]
    assert [one.layers for one in found["descending"]] == [(6, 5, 4, 3, 2), (5, 4, 4, 4, 3)]


def test_a_sum_that_does_not_divide_has_every_nearly_uniform_schedule() -> None:
    found = [one.layers for one in uniforms(5, 26)]
    assert len(found) == 5
    assert all(sorted(layers) == [5, 5, 5, 5, 6] for layers in found)


def test_many_layers_have_three_nearly_uniform_schedules() -> None:
    found = [one.layers for one in uniforms(26, 26 * 4 + 13)]
    assert len(found) == 3
    assert all(sum(layers) == 117 and set(layers) == {4, 5} for layers in found)


@given(layers=st.integers(2, 30), lowest=st.integers(0, 2), width=st.integers(1, 8), share=st.floats(0, 1))
def test_every_plain_schedule_keeps_to_sum_and_bounds(layers: int, lowest: int, width: int, share: float) -> None:
    top_k = lowest + width
    total = round(layers * (lowest + share * width))
    for kind, ones in baselines(layers, total, lowest, top_k).items():
        for one in ones:
            assert one.total == total
            assert lowest <= min(one.layers) <= max(one.layers) <= top_k
            if kind == "ascending":
                assert list(one.layers) == sorted(one.layers)
            if kind == "descending":
                assert list(one.layers) == sorted(one.layers, reverse=True)


def test_rounding_refuses_a_sum_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="total: got 9, allowed: 2 to 8"):
        rounded_to([4.0, 4.0], 9, 1, 4)


def test_hints_and_labels() -> None:
    assert Candidate((6, 4)).hint == {"layers": [6, 4]}
    assert Candidate((6, 4), 1.1).hint == {"layers": [6, 4], "rescale": 1.1}
    assert [Candidate((6, 4), r).label for r in ("router", "mass", 1.1)] == ["6-4", "6-4 mass", "6-4 x1.1"]
