"""Distinct experts of a batch: the closed form of even routing, skew, and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.perfmodel.roofline import expected_distinct_experts
from sglang_moe_opt.perfmodel.routing import inclusion, lognormal_popularity, moments, touched, touched_by_skew


@given(experts=st.integers(2, 256), share=st.floats(0, 1), tokens=st.integers(1, 2000))
def test_without_skew_it_is_the_closed_form(experts: int, share: float, tokens: int) -> None:
    na = share * experts
    mean, _ = touched_by_skew(experts, na, float(tokens), 0.0)
    assert mean == pytest.approx(expected_distinct_experts(experts, na, tokens), rel=1e-9, abs=1e-9)


@given(experts=st.integers(4, 64), na=st.integers(1, 4), tokens=st.integers(1, 500), skew=st.floats(0, 2))
def test_skew_never_touches_more(experts: int, na: int, tokens: int, skew: float) -> None:
    even, _ = touched_by_skew(experts, na, tokens, 0.0)
    skewed, variance = touched_by_skew(experts, na, tokens, skew)
    assert min(na, experts) - 1e-9 <= skewed <= even + 1e-9
    assert variance >= 0


@given(popularity=st.lists(st.floats(0.01, 100), min_size=2, max_size=40), share=st.floats(0, 1))
def test_inclusion_is_a_probability_with_the_sum_na(popularity: list[float], share: float) -> None:
    na = share * len(popularity)
    found = inclusion(tuple(popularity), na)
    assert found.sum() == pytest.approx(na, rel=1e-9, abs=1e-9)
    assert (found >= 0).all() and (found <= 1 + 1e-12).all()
    order = np.argsort(popularity)
    assert (np.diff(found[order]) >= -1e-12).all()


def test_one_token_touches_its_own_experts() -> None:
    probabilities = inclusion(lognormal_popularity(64, 1.0), 6)
    assert moments(touched(probabilities, 1))[0] == pytest.approx(6)


def test_a_popular_expert_is_in_every_choice() -> None:
    assert inclusion((100.0, 1.0, 1.0, 1.0), 2).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


def test_more_experts_than_are_ever_chosen() -> None:
    with pytest.raises(ValueError, match="allowed: 0 to 1 experts"):
        inclusion((1.0, 0.0), 2)


def test_the_closed_form_agrees_with_drawing() -> None:
    """Top-k of noisy popularity: what a router does, drawn 400 times."""
    generator = np.random.default_rng(0)
    experts, na, tokens = 64, 6, 16
    scores = generator.gumbel(size=(400, tokens, experts))
    chosen = np.argsort(-scores, axis=2)[:, :, :na]
    distinct = [len(np.unique(batch)) for batch in chosen]
    assert np.mean(distinct) == pytest.approx(touched_by_skew(experts, na, tokens, 0.0)[0], rel=0.01)
