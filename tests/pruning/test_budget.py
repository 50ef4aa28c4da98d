"""Budgets: uniform, or spread over layers where it costs the least."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.pruning.budget import Budget, allocate
from sglang_moe_opt.pruning.ranking import rank
from tests.pruning.evidence import grouped_shape, plain_shape

LOSSES = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda size: arrays(np.float64, size, elements=st.integers(-9, 9).map(float))
)


@given(LOSSES, st.data())
def test_no_other_allocation_loses_less(loss: np.ndarray, data: st.DataObject) -> None:
    rows, width = loss.shape
    total = data.draw(st.integers(0, rows * (width - 1)))
    columns = allocate(loss, total)
    assert columns.sum() == total
    least = min(
        sum(loss[row, column] for row, column in enumerate(other))
        for other in product(range(width), repeat=rows)
        if sum(other) == total
    )
    assert loss[np.arange(rows), columns].sum() == least


@pytest.mark.parametrize("total", [-1, 5])
def test_what_cannot_be_allocated(total: int) -> None:
    with pytest.raises(ValueError, match=f"total: {total}, allowed: 0 to 4"):
        allocate(np.zeros((2, 3)), total)


def test_uniform() -> None:
    shape = plain_shape(layers=3)
    ranking = rank(np.zeros((3, 8)), shape)
    assert Budget(4).counts(ranking, shape, None).tolist() == [4, 4, 4]
    assert Budget(8).counts(ranking, shape, None).tolist() == [8, 8, 8]


def test_spread_over_layers() -> None:
    shape = plain_shape(layers=3, top_k=2)
    ranking = rank(np.zeros((3, 8)), shape)
    removed = 8 - np.array(ranking.counts)
    loss = np.array([1.0, 1.0, 100.0])[:, None] * removed**2
    assert Budget(4, spread=True).counts(ranking, shape, loss).tolist() == [2, 2, 8]
    assert Budget(2, spread=True).counts(ranking, shape, loss).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="loss: missing"):
        Budget(4, spread=True).counts(ranking, shape, None)


@given(st.integers(4, 12), st.booleans(), st.integers(0, 99))
def test_spread_within_groups(keep: int, equal: bool, seed: int) -> None:
    shape = grouped_shape(layers=4, experts=12, groups=2, topk_group=1, top_k=2)
    generator = np.random.default_rng(seed)
    ranking = rank(generator.random((4, 12)), shape, equal_groups=equal)
    loss = ranking.shares_lost(generator.random((4, 12)))
    counts = Budget(keep, spread=True, equal_groups=equal).counts(ranking, shape, loss)
    assert counts.sum() == keep * 4
    assert set(counts.tolist()) <= set(ranking.counts)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(3), "keep: got 3, allowed: 4 to 12 in multiples of 2, one for each"),
        (Budget(5), "keep: got 5, allowed: 4 to 12 in multiples of 2"),
        (Budget(14), "keep: got 14, allowed: 4 to 12"),
        (Budget(3, equal_groups=False), "keep: got 3, allowed: 4 to 12$"),
        (Budget(5, spread=True), "keep: got 5, allowed: 4 to 12 in multiples of 2"),
        (Budget(2, spread=True), "keep: got 2, allowed: 4 to 12"),
    ],
)
def test_budgets_that_the_router_forbids(budget: Budget, message: str) -> None:
    shape = grouped_shape(layers=3, experts=12, groups=2, topk_group=1, top_k=2)
    ranking = rank(np.zeros((3, 12)), shape, equal_groups=budget.equal_groups)
    with pytest.raises(FieldError, match=message):
        budget.counts(ranking, shape, np.zeros((3, len(ranking.counts))))
