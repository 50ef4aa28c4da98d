"""Thresholds meet their budget on the sample they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.magnitude.thresholds import Rule, layer_thresholds, one_threshold
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from tests.magnitude.make import SHAPE, make_weights

rules = st.sampled_from(["min_ratio", "min_weight", "top_p"])
means = st.floats(2.2, 5.8)


def schedule(rule: Rule, value: object, min_na: int = 1) -> SkipSchedule:
    return SkipSchedule(**{rule: value}, min_na=min_na)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(rules, means, st.integers(1, 2), st.integers(0, 3))
def test_one_threshold_meets_the_mean_over_all_layers(rule: Rule, mean: float, min_na: int, seed: int) -> None:
    found = make_weights(seed)
    threshold = one_threshold(found, rule, mean, min_na)
    kept = found.mean_na(schedule(rule, threshold, min_na).expand(SHAPE))
    assert kept.mean() == pytest.approx(mean, abs=0.005)


@settings(max_examples=40, deadline=None)
@given(rules, st.lists(means, min_size=4, max_size=4), st.integers(0, 3))
def test_layers_meet_their_own_means(rule: Rule, wanted: list[float], seed: int) -> None:
    found = make_weights(seed)
    thresholds = layer_thresholds(found, rule, wanted, min_na=2)
    kept = found.mean_na(schedule(rule, thresholds, 2).expand(SHAPE))
    np.testing.assert_allclose(kept, wanted, atol=0.02)


@pytest.mark.parametrize("rule", ["min_ratio", "min_weight", "top_p"])
def test_one_threshold_keeps_more_where_weights_are_even(rule: Rule) -> None:
    found = make_weights()
    kept = found.mean_na(schedule(rule, one_threshold(found, rule, 3.0)).expand(SHAPE))
    assert (np.diff(kept) < -0.2).all(), "layers go from even to polarised"


@settings(max_examples=30, deadline=None)
@given(rules, st.floats(2, 5), st.floats(0.1, 1))
def test_a_larger_budget_keeps_what_a_smaller_one_keeps(rule: Rule, mean: float, more: float) -> None:
    found = make_weights()
    few, many = (found.kept(schedule(rule, one_threshold(found, rule, na)).expand(SHAPE)) for na in (mean, mean + more))
    assert (many | ~few).all()


@pytest.mark.parametrize("rule", ["min_ratio", "min_weight", "top_p"])
def test_the_ends_of_what_is_possible(rule: Rule) -> None:
    found = make_weights()
    assert schedule(rule, one_threshold(found, rule, 6)).expand(SHAPE).is_full or found.mean_na(
        schedule(rule, one_threshold(found, rule, 6)).expand(SHAPE)
    ).mean() == pytest.approx(6, abs=1e-3)
    least = found.mean_na(schedule(rule, one_threshold(found, rule, 3, min_na=3), 3).expand(SHAPE))
    np.testing.assert_allclose(least, 3, atol=0.1)
    for mean in (0.5, 6.5):
        with pytest.raises(FieldError, match=r"mean_na: got .*, allowed: a number from 1\.\d\d to 6"):
            one_threshold(found, rule, mean)


def test_errors_name_the_layer() -> None:
    found = make_weights()
    with pytest.raises(FieldError, match=r"layer_na\[2\]: got 7"):
        layer_thresholds(found, "top_p", [3, 3, 7, 3])
    with pytest.raises(FieldError, match=r"layer_na: .* a list of 4 numbers"):
        layer_thresholds(found, "top_p", [3, 3])


def test_equal_weights_cannot_be_told_apart() -> None:
    found = RouterWeights((1,), np.full((1, 10, 4), 0.25, np.float32))
    with pytest.raises(FieldError, match=r"a number from 4.00 to 4 \(min_ratio\)"):
        one_threshold(found, "min_ratio", 2)
    assert 0.25 < one_threshold(found, "top_p", 2) <= 0.5  # by share the second of four reaches a half
