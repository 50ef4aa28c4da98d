"""Criteria: what each of them keeps."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.pruning.criteria import CRITERIA, Evidence, find_criterion
from sglang_moe_opt.pruning.ranking import rank
from tests.pruning.evidence import grouped_shape, make_evidence, plain_shape

SHAPE_64 = plain_shape(layers=1, experts=64, top_k=6)
NAMES = ("random", "odd", "even", "first_half", "last_half", "hard", "soft", "reap", "easy_ep", "norm")


def kept(name: str, keep: int, evidence: Evidence) -> list[tuple[int, ...]]:
    ranking = rank(CRITERIA[name].score(evidence), evidence.shape)
    return ranking.kept(np.full(evidence.shape.num_moe_layers, keep))


def test_the_registry() -> None:
    assert set(NAMES) <= set(CRITERIA)
    assert all(find_criterion(name).name == name for name in CRITERIA)
    with pytest.raises(FieldError, match="criterion: got 'best', allowed: random, odd, even"):
        find_criterion("best")


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_and_expert_has_a_number(name: str) -> None:
    evidence = make_evidence(plain_shape(layers=3, experts=12))
    scores = CRITERIA[name].score(evidence)
    assert scores.shape == (3, 12)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("name", "keep", "expected"),
    [
        ("odd", 32, range(1, 64, 2)),
        ("even", 32, range(0, 64, 2)),
        ("first_half", 32, range(32)),
        ("last_half", 32, range(32, 64)),
        ("even", 16, range(0, 64, 4)),
        ("odd", 16, range(1, 64, 4)),
        ("first_half", 48, range(48)),
        ("last_half", 16, range(48, 64)),
        ("even", 48, [e for e in range(64) if e % 4 != 3]),
        ("odd", 48, [e for e in range(64) if e % 4 != 2]),
    ],
)
def test_structured(name: str, keep: int, expected: list[int]) -> None:
    assert kept(name, keep, Evidence(SHAPE_64)) == [tuple(expected)]


@pytest.mark.parametrize("keep", range(6, 65))
def test_spacing_is_even_at_any_count(keep: int) -> None:
    """Gaps around the circle of ids differ by a factor of 2 at most, and half of the ids keeps its parity."""
    for name, parity in (("even", 0), ("odd", 1)):
        ids = np.array(kept(name, keep, Evidence(SHAPE_64))[0])
        gaps = np.diff(np.append(ids, ids[0] + 64))
        assert gaps.max() <= 3 * gaps.min()
        if keep <= 32:
            assert (ids % 2 == parity).all()
            assert gaps.max() <= 2 * gaps.min()


def test_structured_within_groups() -> None:
    evidence = Evidence(grouped_shape(layers=1, experts=16, groups=2))
    assert kept("first_half", 8, evidence) == [(0, 1, 2, 3, 8, 9, 10, 11)]
    assert kept("odd", 8, evidence) == [(1, 3, 5, 7, 9, 11, 13, 15)]


@pytest.mark.parametrize("experts", [5, 6, 7, 12, 60])
def test_odd_and_even_share_nothing_at_half(experts: int) -> None:
    evidence = Evidence(plain_shape(layers=1, experts=experts, top_k=1))
    odd, even = (set(kept(name, experts // 2, evidence)[0]) for name in ("odd", "even"))
    assert not odd & even
    assert even <= set(range(0, experts, 2))


def test_random_depends_on_the_seed_and_the_layer_alone() -> None:
    short, long = plain_shape(layers=2), plain_shape(layers=5)
    assert kept("random", 4, Evidence(short, 3)) == kept("random", 4, Evidence(long, 3))[:2]
    draws = {tuple(kept("random", 4, Evidence(short, seed))) for seed in range(20)}
    assert len(draws) == 20
    assert all(first != second for first, second in draws)


def test_random_has_no_favourites() -> None:
    counts = np.zeros(8)
    for seed in range(200):
        for ids in kept("random", 4, Evidence(plain_shape(layers=5), seed)):
            counts[list(ids)] += 1
    assert abs(counts / 1000 - 0.5).max() < 0.08  # five standard deviations


@pytest.mark.parametrize("name", ["hard", "soft", "easy_ep", "norm"])
def test_sums_are_taken_as_they_are(name: str) -> None:
    evidence = make_evidence(plain_shape())
    np.testing.assert_array_equal(CRITERIA[name].score(evidence), getattr(evidence.measured, name))


def test_reap_is_the_mean_over_routed_tokens() -> None:
    hard, reap = np.array([[4.0, 1.0, 0.0, 10.0]]), np.array([[8.0, 3.0, 0.0, 10.0]])
    evidence = make_evidence(plain_shape(layers=1, experts=4), hard=hard, reap=reap)
    np.testing.assert_array_equal(CRITERIA["reap"].score(evidence), [[2.0, 3.0, 0.0, 1.0]])


@pytest.mark.parametrize("name", [name for name, criterion in CRITERIA.items() if criterion.needs_statistics])
def test_statistics_that_are_missing_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="statistics: missing"):
        CRITERIA[name].score(Evidence(plain_shape()))
