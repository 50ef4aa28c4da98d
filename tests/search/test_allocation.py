"""Allocation finds what brute force finds: the best, the next best in order, the front, with and without neighbours."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_moe_opt.search.allocation import Problem


def problem(seed: int, layers: int, levels: int, *, neighbours: bool, weights: str) -> Problem:
    generator = np.random.default_rng(seed)
    spent = {
        "experts": np.tile(np.arange(1.0, levels + 1), (layers, 1)),
        "bytes": np.tile(17_301_504.0 * np.arange(1, levels + 1), (layers, 1)),
        "own": generator.integers(0, 6, (layers, levels)).astype(float),
    }[weights]
    pairs = generator.normal(0, 0.5, (layers - 1, levels, levels)) if neighbours else None
    return Problem(tuple(range(1, levels + 1)), generator.normal(0, 1, (layers, levels)), pairs, spent)


def brute(one: Problem, budget: float) -> list[tuple[float, float, tuple[int, ...]]]:
    """(loss, spent, layers) of every schedule within the budget, best first."""
    found = []
    for picks in product(range(len(one.levels)), repeat=len(one.costs)):
        spent = sum(one.weights[layer, pick] for layer, pick in enumerate(picks))
        if spent <= budget * (1 + 1e-12):
            found.append((one.loss(picks), float(spent), tuple(one.levels[pick] for pick in picks)))
    return sorted(found)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 5),
    levels=st.integers(2, 4),
    neighbours=st.booleans(),
    weights=st.sampled_from(["experts", "bytes", "own"]),
    share=st.floats(0.0, 1.0),
)
@example(seed=1, layers=2, levels=2, neighbours=False, weights="own", share=0.0)  # weights with a small common divisor
def test_the_best_ones_in_order(
    seed: int, layers: int, levels: int, neighbours: bool, weights: str, share: float
) -> None:
    one = problem(seed, layers, levels, neighbours=neighbours and layers > 1, weights=weights)
    low, high = float(one.weights.min(axis=1).sum()), float(one.weights.max(axis=1).sum())
    budget = low + share * (high - low)
    wanted = brute(one, budget)[:7]
    found = one.best(budget, 7)
    assert [a.loss for a in found] == pytest.approx([loss for loss, _, _ in wanted])
    assert len({a.layers for a in found}) == len(found)
    for allocation in found:
        picks = [one.levels.index(na) for na in allocation.layers]
        assert one.loss(picks) == pytest.approx(allocation.loss)
        assert allocation.spent <= budget * (1 + 1e-12)


@pytest.mark.parametrize("neighbours", [False, True])
def test_front_is_the_best_at_every_amount(neighbours: bool) -> None:
    one = problem(3, 4, 4, neighbours=neighbours, weights="experts")
    front = one.front(16)
    wanted: list[tuple[float, float]] = []
    for total in range(4, 17):
        exactly = [entry for entry in brute(one, 16) if entry[1] == total]
        if exactly and (not wanted or exactly[0][0] < wanted[-1][0] - 1e-12):
            wanted.append(exactly[0][:2])
    assert [a.loss for a in front] == pytest.approx([loss for loss, _ in wanted])
    assert [a.spent for a in front] == [spent for _, spent in wanted]


def test_a_budget_that_only_the_cheapest_meets_is_met() -> None:
    weights = np.array([[0.1234, 1.0], [0.777, 3.1], [2.3456, 2.5]])
    one = Problem((1, 2), np.zeros((3, 2)), None, weights)
    (found,) = one.best(float(weights[:, 0].sum()))
    assert found.layers == (1, 1, 1)
    with pytest.raises(ValueError, match=r"budget: got 3.2, allowed: at least 3.246"):
        one.best(3.2)


def test_real_weights_are_never_over_budget_and_nearly_the_best() -> None:
    generator = np.random.default_rng(5)
    weights = np.sort(generator.uniform(1, 9, (5, 5)), axis=1)
    costs = -np.sort(-generator.uniform(0, 1, (5, 5)), axis=1) * -1.0
    one = Problem((1, 2, 3, 4, 5), costs, None, weights)
    for budget in (15.0, 22.2, 31.7):
        best = one.best(budget)[0]
        assert best.spent <= budget
        assert brute(one, budget * (1 - 6 / 1024))[0][0] >= best.loss - 1e-12 >= brute(one, budget)[0][0] - 2e-12


def test_fifty_eight_layers_take_no_time() -> None:
    one = problem(1, 58, 8, neighbours=True, weights="experts")
    best = one.best(58 * 4, 10)
    assert len(best) == 10
    assert best == sorted(best, key=lambda a: a.loss)


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="budget: got 2, allowed: at least 3"):
        problem(0, 3, 2, neighbours=False, weights="experts").best(2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        Problem((1, 2), np.zeros((3, 2)), np.zeros((3, 2, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="weights"):
        Problem((1, 2), np.zeros((3, 2)), None, np.ones((2, 2)))
