"""The torch reference against the pure-Python oracle, and the properties that every implementation owes."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from sglang_moe_opt.routing import MASS, Choice, RoutingTable
from sglang_moe_opt.routing.reference import apply_skip
from tests.routing.cases import Case, assert_same, assert_unchanged_rows_are_identical, build, random_case, run
from tests.routing.oracle import judge
from tests.routing.strategies import cases

# Fixed examples: the same commit gives the same verdict on every machine.
fixed = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def one_row_table(na: int, rescale: float, **rules: float) -> RoutingTable:
    """A table of one schedule and one layer."""
    table = RoutingTable.allocate(1, 1, "cpu")
    values = {"min_ratio": 0.0, "top_p": 1.0, "min_na": 0} | rules
    table.write_row(0, np.array([na]), rescale=np.array([rescale]), **{k: np.array([v]) for k, v in values.items()})
    return table


@given(cases(max_tokens=6))
@settings(fixed, max_examples=2000)
def test_agrees_with_the_oracle(case: Case) -> None:
    problem = build(case)
    verdict = judge(problem, case.exact_weights)
    outcome = run(apply_skip, problem)
    assert_same(outcome, verdict.outcome, verdict.decided)
    assert_unchanged_rows_are_identical(outcome, problem)


def test_few_rows_hang_on_rounding() -> None:
    """Otherwise the comparisons above and on the GPU would compare little."""
    rng = random.Random(0)
    decided = [judge(build(case), case.exact_weights).decided for case in (random_case(rng) for _ in range(100))]
    assert torch.cat(decided).float().mean() > 0.98


@given(cases(max_tokens=8))
@settings(fixed, max_examples=300)
def test_na_of_at_least_top_k_is_the_model_itself(case: Case) -> None:
    problem = build(dataclasses.replace(case, dynamic=False))
    # No location table: with one, a slot whose logical id is -1 is taken out whatever the schedule says.
    problem.logical_ids = None
    problem.ids[:, : case.num_slots].clamp_(max=case.num_experts - 1)
    problem.table.na.fill_(case.num_slots)
    outcome = run(apply_skip, problem)
    assert torch.equal(outcome.weights, problem.weights)
    assert torch.equal(outcome.ids, problem.ids)


@given(cases(max_tokens=8))
@settings(fixed, max_examples=300)
def test_dynamic_flag_only_saves_work(case: Case) -> None:
    problem = build(dataclasses.replace(case, dynamic=False))
    fast = run(apply_skip, problem)
    slow = run(apply_skip, dataclasses.replace(problem, dynamic=True))
    assert torch.equal(fast.ids, slow.ids)
    assert torch.equal(fast.weights, slow.weights)


def test_ranks_by_choice_score_not_by_weight() -> None:
    """Slot 0 has the larger weight, but the bias made the router prefer slot 1."""
    weights, ids = torch.tensor([[0.7, 0.3]]), torch.tensor([[0, 1]])
    choice = Choice(torch.tensor([[2.0, 1.0]]), torch.tensor([0.0, 5.0]), "sigmoid")
    apply_skip(weights, ids, choice, torch.zeros(1, dtype=torch.int32), one_row_table(1, 1.0), 0)
    assert ids.tolist() == [[-1, 1]]
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.3]]))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"min_ratio": 0.5}, [0.4, 0.3, 0.2, 0.0]),
        ({"min_ratio": -0.3}, [0.4, 0.3, 0.0, 0.0]),
        ({"min_ratio": -0.5}, [0.0, 0.0, 0.0, 0.0]),
        ({"min_ratio": -0.5, "min_na": 1}, [0.4, 0.0, 0.0, 0.0]),
        ({"top_p": 0.6}, [0.4, 0.3, 0.0, 0.0]),
        ({"top_p": 0.0}, [0.0, 0.0, 0.0, 0.0]),
        ({"top_p": 0.0, "min_na": 1}, [0.4, 0.0, 0.0, 0.0]),
        ({"min_ratio": 0.7, "min_na": 3}, [0.4, 0.3, 0.2, 0.0]),
        ({"min_ratio": 0.5, "top_p": 0.6}, [0.4, 0.3, 0.0, 0.0]),
    ],
)
def test_weight_rules(rules: dict[str, float], expected: list[float]) -> None:
    weights, ids = torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.arange(4)[None].clone()
    choice = Choice(weights.log(), None, "softmax")
    apply_skip(weights, ids, choice, torch.zeros(1, dtype=torch.int32), one_row_table(4, 1.0, **rules), 0)
    torch.testing.assert_close(weights, torch.tensor([expected]))
    assert (ids >= 0).tolist() == [[w > 0 for w in expected]]


@pytest.mark.parametrize(
    ("rescale", "expected"), [(MASS, [0.6, 0.4, 0.0]), (1.0, [0.3, 0.2, 0.0]), (2.0, [0.6, 0.4, 0])]
)
def test_rescale(rescale: float, expected: list[float]) -> None:
    weights, ids = torch.tensor([[0.3, 0.2, 0.5]]), torch.arange(3, dtype=torch.int32)[None].clone()
    choice = Choice(torch.tensor([[3.0, 2.0, 1.0]]), None, "softmax")
    apply_skip(weights, ids, choice, torch.zeros(1, dtype=torch.int32), one_row_table(2, rescale), 0)
    torch.testing.assert_close(weights, torch.tensor([expected]))


def test_kept_weights_of_zero_stay_zero() -> None:
    """The kept slot weighs nothing, so no factor can restore the mass: not NaN, not inf."""
    weights, ids = torch.tensor([[0.0, 0.5]]), torch.tensor([[0, 1]])
    choice = Choice(torch.tensor([[2.0, 1.0]]), None, "softmax")
    apply_skip(weights, ids, choice, torch.zeros(1, dtype=torch.int32), one_row_table(1, MASS), 0)
    assert weights.tolist() == [[0.0, 0.0]]
    assert ids.tolist() == [[0, -1]]


def test_no_tokens() -> None:
    choice = Choice(torch.empty(0, 4), None, "softmax")
    rows = torch.zeros(4, dtype=torch.int32)
    apply_skip(torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int32), choice, rows, one_row_table(1, MASS), 0)
