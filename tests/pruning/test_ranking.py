"""Rankings: every prefix that a budget may take runs, and is the best by score."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PlanError, PrunePlan
from sglang_moe_opt.pruning.ranking import rank
from tests.pruning.evidence import grouped_shape, plain_shape

SHAPES = [
    plain_shape(experts=8, top_k=3),
    grouped_shape(experts=8, groups=2, topk_group=1, top_k=3),
    grouped_shape(experts=12, groups=4, topk_group=2, top_k=4),
    MoEShape(3, (1, 2), 3, 8, 0, False, "softmax", n_group=4, topk_group=2),
]
SCORES = st.integers(0, 3).flatmap(
    lambda index: st.tuples(
        st.just(SHAPES[index]),
        arrays(np.float64, (2, SHAPES[index].num_experts), elements=st.integers(-5, 5).map(float)),
    )
)


def runs(shape: MoEShape, kept: tuple[int, ...]) -> bool:
    """Whether the model can run with these experts in every layer."""
    plan = PrunePlan(model="0" * 32, num_experts=shape.num_experts, layers=dict.fromkeys(shape.moe_layer_ids, kept))
    try:
        plan.check(shape, None)
    except PlanError:
        return False
    return True


@cache
def sets_that_run(shape: MoEShape, count: int) -> list[tuple[int, ...]]:
    return [ids for ids in combinations(range(shape.num_experts), count) if runs(shape, ids)]


@given(SCORES, st.booleans())
def test_every_count_runs_and_holds_the_smaller_ones(case: tuple[MoEShape, np.ndarray], equal: bool) -> None:
    shape, scores = case
    ranking = rank(scores, shape, equal_groups=equal)
    assert ranking.counts[-1] == shape.num_experts
    for layer in range(2):
        before: set[int] = set()
        for count in ranking.counts:
            kept = ranking.kept(np.full(2, count))[layer]
            assert len(kept) == count
            assert list(kept) == sorted(set(kept))
            assert runs(shape, kept)
            assert before < set(kept)
            before = set(kept)


@given(SCORES)
def test_equal_groups_keep_the_best_of_each(case: tuple[MoEShape, np.ndarray]) -> None:
    shape, scores = case
    ranking = rank(scores, shape)
    size = shape.num_experts // shape.n_group
    for count in ranking.counts:
        for layer, kept in enumerate(ranking.kept(np.full(2, count))):
            expected = []
            for group in range(shape.n_group):
                ids = range(group * size, (group + 1) * size)
                expected += sorted(ids, key=lambda e: (-scores[layer][e], e))[: count // shape.n_group]
            assert kept == tuple(sorted(expected))


@given(SCORES)
def test_unequal_groups_keep_the_highest_sum_that_runs(case: tuple[MoEShape, np.ndarray]) -> None:
    shape, scores = case
    ranking = rank(scores, shape, equal_groups=False)
    for count in (ranking.counts[0], ranking.counts[len(ranking.counts) // 2]):
        kept = ranking.kept(np.full(2, count))[0]
        best = max(scores[0][list(ids)].sum() for ids in sets_that_run(shape, count))
        assert scores[0][list(kept)].sum() == best


def test_without_groups_it_is_the_order_of_scores() -> None:
    scores = np.array([[1.0, 3.0, 2.0, 3.0]])
    ranking = rank(scores, plain_shape(layers=1, experts=4, top_k=2))
    assert ranking.order.tolist() == [[1, 3, 2, 0]]
    assert ranking.counts == (2, 3, 4)


def test_shares_lost() -> None:
    ranking = rank(np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]]), plain_shape(layers=2, experts=4, top_k=1))
    lost = ranking.shares_lost(np.array([[5.0, 3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(lost, [[0.5, 0.2, 0.0, 0.0], [0.75, 0.5, 0.25, 0.0]], atol=1e-12)


@pytest.mark.parametrize("scores", [np.zeros((1, 8)), np.zeros((2, 7))])
def test_scores_of_another_shape(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"scores: shape .*, expected \(2, 8\)"):
        rank(scores, plain_shape())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    with pytest.raises(ValueError, match="not all are numbers"):
        rank(np.full((2, 8), bad), plain_shape())
