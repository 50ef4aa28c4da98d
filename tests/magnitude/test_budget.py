"""A budget is met on the sample, and corrected by what an engine with other inputs realises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.magnitude.budget import TOLERANCE, Budget, Search, best
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from tests.magnitude.make import SHAPE, make_weights

SAMPLE = make_weights(0, tokens=2000)
SERVED = make_weights(1, tokens=2000, steepness=(0.5, 1.3, 2.4, 3.6))
"""What earlier layers that drop experts turn the inputs into: steeper than in the sample."""


def engine(schedule: SkipSchedule, weights: RouterWeights = SERVED) -> float:
    return float(weights.mean_na(schedule.expand(SHAPE)).mean())


def search(budget: Budget, **options: Any) -> Search:
    return Search(budget, SAMPLE, lambda rule: rule.expand(SHAPE), fit=lambda table: (0.9, 0.8, 0.7, 0.6), **options)


@pytest.mark.parametrize("rule", ["min_ratio", "min_weight", "top_p"])
@pytest.mark.parametrize("scope", ["one", "layers"])
def test_corrections_meet_the_budget_in_the_engine(rule: Any, scope: Any) -> None:
    seen: list[float | None] = []
    rounds = search(Budget(rule, 3.0, scope=scope), measure=engine, report=lambda one: seen.append(one.realised)).run()
    errors = [abs(one.realised - 3.0) for one in rounds if one.realised is not None]
    assert errors[0] > 0.1, "the sample's word is not enough here"
    assert min(errors) < 0.03 and len(rounds) <= 3
    assert best(rounds, 3.0).realised == pytest.approx(3.0, abs=0.03)
    assert seen == [one.realised for one in rounds]


def test_no_correction_where_none_is_needed() -> None:
    rounds = search(Budget("min_ratio", 3.0), measure=lambda rule: engine(rule, SAMPLE)).run()
    assert len(rounds) == 1 and rounds[0].realised == pytest.approx(3.0, abs=TOLERANCE)


def test_without_an_engine_the_sample_is_all_there_is() -> None:
    (only,) = search(Budget("top_p", 4.0)).run()
    assert only.realised is None and best([only], 4.0) is only
    assert np.mean(only.sample_na) == pytest.approx(4.0, abs=0.01)
    assert only.to_object()["schedule"] == only.schedule.to_object()


def test_layers_may_have_budgets_of_their_own() -> None:
    (only,) = search(Budget.of_layers("min_ratio", (5.0, 4.0, 2.0, 2.0))).run()
    np.testing.assert_allclose(only.sample_na, [5, 4, 2, 2], atol=0.02)
    assert len(only.schedule.min_ratio) == 4  # type: ignore[arg-type]


def test_a_layer_that_keeps_the_least_stays_there_when_others_are_moved() -> None:
    budget = Budget.of_layers("min_weight", (1.0, 2.0, 4.0, 6.0))
    low, high = (SkipSchedule(min_weight=budget.thresholds(SAMPLE, offset)) for offset in (-0.3, 0.3))
    np.testing.assert_allclose(SAMPLE.mean_na(low.expand(SHAPE)), [1, 1.7, 3.7, 5.7], atol=0.02)
    np.testing.assert_allclose(SAMPLE.mean_na(high.expand(SHAPE)), [1.3, 2.3, 4.3, 6], atol=0.02)


def test_fitted_factors_are_of_the_table_that_is_served() -> None:
    tables: list[LayerTable] = []

    def fit(table: LayerTable) -> tuple[float, ...]:
        tables.append(table)
        return (0.9, 0.8, 0.7, 0.6)

    (only,) = Search(Budget("top_p", 4.0, rescale="fit"), SAMPLE, lambda rule: rule.expand(SHAPE), fit).run()
    assert only.schedule.rescale == (0.9, 0.8, 0.7, 0.6)
    assert np.array_equal(tables[0].top_p, only.schedule.expand(SHAPE).top_p)
    (factor,) = search(Budget("top_p", 4.0, rescale=1.1)).run()
    assert factor.schedule.rescale == 1.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "na"}, "--rule: got 'na', allowed: min_ratio, min_weight, top_p"),
        ({"mean_na": 0}, "--mean-na: got 0"),
        ({"rescale": "half"}, "rescale: got 'half'"),
        ({"min_na": -1}, "min_na: got -1"),
    ],
)
def test_bad_budgets(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        Budget(**({"rule": "top_p", "mean_na": 3} | values))  # type: ignore[arg-type]
