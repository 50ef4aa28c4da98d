"""The torch reference of consolidation against a brute-force oracle, and what every implementation owes."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from sglang_moe_opt.routing import MASS, ActiveSet, Choice, ConsolidationTable, FillRule, RoutingStats
from sglang_moe_opt.routing.consolidate import consolidate, fill
from sglang_moe_opt.routing.reference import apply_skip
from tests.routing.cases import random_case
from tests.routing.consolidation_cases import ConsolidationCase, Problem, assert_same, build_problem, judge, run
from tests.routing.strategies import consolidation_cases

fixed = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

UNLIMITED = FillRule()


def table_of(*rows: tuple[int, int, float]) -> ConsolidationTable:
    """One layer; each row is (k0, na, rescale)."""
    table = ConsolidationTable.allocate(len(rows), 1, "cpu")
    for row, (k0, na, rescale) in enumerate(rows):
        table.write_row(row, [k0], [na], [rescale])
    return table


def routed(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A softmax router: weights float32 [n, k], ids int32 [n, k], best first."""
    weights, ids = logits.softmax(-1).topk(top_k, dim=-1)
    return weights.contiguous(), ids.int().contiguous()


def consolidated(
    logits: torch.Tensor,
    rows: list[int],
    table: ConsolidationTable,
    top_k: int = 3,
    rule: FillRule = UNLIMITED,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a softmax router and consolidation make of ``logits``."""
    weights, ids = routed(logits, top_k)
    consolidate(
        weights,
        ids,
        Choice(logits, None, "softmax"),
        torch.tensor(rows, dtype=torch.int32),
        table,
        0,
        rule=rule,
        scratch=ActiveSet.allocate(logits.shape[1], "cpu"),
    )
    return weights, ids


@given(consolidation_cases(max_tokens=8))
@settings(fixed, max_examples=2000)
def test_agrees_with_the_oracle(case: ConsolidationCase) -> None:
    problem = build_problem(case)
    expected, clear = judge(problem)
    if clear:
        assert_same(run(consolidate, problem), expected)


def test_few_steps_hang_on_rounding() -> None:
    rng = random.Random(0)
    cases = [ConsolidationCase(random_case(rng), rng.choice((0, 8, 20)), rng.choice((0.0, 0.25))) for _ in range(100)]
    verdicts = [judge(build_problem(case)) for case in cases]
    assert sum(clear for _, clear in verdicts) > 50
    problems = [build_problem(case) for case in cases]
    changes = sum(int((o.filled - p.stats.filled).sum()) for (o, _), p in zip(verdicts, problems, strict=True))
    assert changes > 100


@given(consolidation_cases(max_tokens=8))
@settings(fixed, max_examples=300)
def test_tokens_that_do_not_join_keep_every_bit(case: ConsolidationCase) -> None:
    problem = build_problem(case)
    joins = problem.table.k0[problem.rows[: len(problem.ids)].long(), problem.layer] > 0
    outcome = run(consolidate, problem)
    assert torch.equal(outcome.ids[~joins], problem.ids[~joins])
    assert torch.equal(outcome.weights[~joins], problem.weights[~joins])
    same = (outcome.ids == problem.ids).all(-1)
    assert torch.equal(outcome.weights[same], problem.weights[same])
    gone = problem.ids < 0
    gone[:, problem.ids.shape[1] - problem.num_shared :] = True
    assert torch.equal(outcome.ids[gone], problem.ids[gone])
    assert torch.equal(outcome.weights[gone], problem.weights[gone])


@given(consolidation_cases(max_tokens=8))
@settings(fixed, max_examples=200)
def test_padded_rows_neither_add_nor_receive(case: ConsolidationCase) -> None:
    """A step with padding behind it gives what it gives without."""
    # Equal logits may get scores that differ in the last bit, by where in a vector register they were.
    case = dataclasses.replace(case, routing=dataclasses.replace(case.routing, coarse_logits=False))
    problem = build_problem(case)
    half = len(problem.ids) // 2
    padded = problem.ids.clone()
    padded[half:, : padded.shape[1] - problem.num_shared] = -1
    if not judge(shortened(problem, half))[1]:
        return
    whole = run(consolidate, dataclasses.replace(problem, ids=padded))
    alone = run(consolidate, shortened(problem, half))
    assert torch.equal(whole.ids[:half], alone.ids)
    torch.testing.assert_close(whole.weights[:half], alone.weights, rtol=1e-6, atol=0)
    assert torch.equal(whole.ids[half:], padded[half:])
    assert torch.equal(whole.touched, alone.touched)


def shortened(problem: Problem, count: int) -> Problem:
    """The first ``count`` tokens alone."""
    logical = problem.logical_ids
    return dataclasses.replace(
        problem,
        weights=problem.weights[:count],
        ids=problem.ids[:count],
        choice=Choice(problem.choice.logits[:count], problem.choice.bias, problem.choice.scoring),
        logical_ids=None if logical is None else logical[:count],
    )


def test_a_slot_goes_to_the_best_expert_that_the_step_computes_anyway() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 2.5, 4.0, 5.0]])
    weights, ids = consolidated(logits, [0, 0], table_of((1, 3, 1.0)))
    # Own: 0 and 5. Each is the other's only fill; the third slot stays empty.
    assert ids.tolist() == [[0, 5, -1], [5, 0, -1]]
    torch.testing.assert_close(weights[0], torch.tensor([*logits[0].softmax(-1)[[0, 5]], 0.0]))


def test_neighbours_that_do_not_join_lend_their_experts() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 1.0, 5.0, 4.0, 3.0]])
    _, ids = consolidated(logits, [0, 1], table_of((1, 3, 1.0), (0, 3, 1.0)))
    assert ids.tolist() == [[0, 3, 4], [3, 4, 5]]


def test_own_experts_that_are_active_come_first() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 0.0], [0.0, 5.0, 1.0, 2.0, 3.0]])
    _, ids = consolidated(logits, [0, 0], table_of((1, 2, 1.0)))
    assert ids.tolist() == [[0, 1, -1], [1, 0, -1]]


def test_alone_a_token_keeps_its_own_and_with_k0_of_na_all() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    assert consolidated(logits, [0], table_of((2, 3, 1.0)))[1].tolist() == [[0, 1, -1]]
    weights, ids = consolidated(logits, [0], table_of((3, 3, MASS)))
    assert (weights.tolist(), ids.tolist()) == tuple(t.tolist() for t in routed(logits, 3))


def test_max_experts_activates_what_is_wanted_most() -> None:
    """Wanted: 1 by two tokens with 0.46 together, 2 with 0.42, 4 with 0.29; 0 and 5 are the tokens' own."""
    logits = torch.tensor(
        [[5.0, 4.0, 3.9, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 4.1, 0.0, 4.0, 5]]
    )
    for most, expected in (
        (0, [[0, 5, -1], [5, 0, -1], [5, 0, -1]]),
        (2, [[0, 5, -1], [5, 0, -1], [5, 0, -1]]),
        (3, [[0, 1, 5], [5, 1, 0], [5, 1, 0]]),
        (4, [[0, 1, 2], [5, 1, 0], [5, 2, 0]]),
        (5, [[0, 1, 2], [5, 1, 4], [5, 2, 4]]),
        (6, [[0, 1, 2], [5, 1, 4], [5, 2, 4]]),
    ):
        _, ids = consolidated(logits, [0, 0, 0], table_of((1, 3, 1.0)), rule=FillRule(max_experts=most))
        assert [sorted(row) for row in ids.tolist()] == [sorted(row) for row in expected], most


def test_max_experts_below_the_top_k_of_one_token_is_the_model_with_fewer() -> None:
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    _, ids = consolidated(logits, [0], table_of((1, 6, 1.0)), top_k=6, rule=FillRule(max_experts=4))
    assert ids.tolist() == [[*routed(logits, 4)[1][0].tolist(), -1, -1]]


def test_min_share_leaves_a_slot_empty() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0], [0.0, 0.0, 3.0, 5.0]])
    table = table_of((1, 3, 1.0))
    assert consolidated(logits, [0, 0], table)[1][0].tolist() == [0, 3, -1]
    assert consolidated(logits, [0, 0], table, rule=FillRule(min_share=0.1))[1][0].tolist() == [0, -1, -1]
    assert consolidated(logits, [0, 0], table, rule=FillRule(min_share=0.04))[1][0].tolist() == [0, 3, -1]


def test_a_fill_stays_in_the_groups_that_the_router_chose_from() -> None:
    logits = torch.tensor([[5.0, 4.0, 0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 1.0, 5.0, 0.5, 4.0]])
    table = table_of((1, 2, 1.0))
    assert consolidated(logits, [0, 0], table, top_k=2)[1].tolist() == [[0, 3], [3, 0]]
    # Three groups of two: token 0 chose from the first alone, token 1 from the second and third.
    assert consolidated(logits, [0, 0], table, top_k=2, rule=FillRule(num_groups=3))[1].tolist() == [[0, -1], [3, -1]]


def test_a_sigmoid_router_renormalises_over_what_is_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0], [-1.0, 0.0, 1.0, 3.0]])
    scores = logits.sigmoid()
    weights, ids = (t.contiguous() for t in scores.topk(3, dim=-1))
    weights = 2.5 * weights / weights.sum(-1, keepdim=True)
    ids = ids.int()
    consolidate(
        weights,
        ids,
        Choice(logits, None, "sigmoid"),
        torch.zeros(2, dtype=torch.int32),
        table_of((1, 3, MASS)),
        0,
        rule=FillRule(),
        scratch=ActiveSet.allocate(4, "cpu"),
    )
    assert ids.tolist() == [[0, 3, -1], [3, 0, -1]]
    expected = 2.5 * scores[:, [0, 3]] / scores[:, [0, 3]].sum(-1, keepdim=True)
    torch.testing.assert_close(weights[0, :2], expected[0])
    torch.testing.assert_close(weights[1, :2], expected[1, [1, 0]])


def test_a_pruned_expert_is_never_a_fill() -> None:
    """Its bias is -inf; a router short of experts may still have had to choose it."""
    logits = torch.zeros(2, 3)
    bias = torch.tensor([0.0, 0.1, -torch.inf])
    weights, ids = torch.ones(2, 2), torch.tensor([[1, 0], [2, 1]], dtype=torch.int32)
    consolidate(
        weights,
        ids,
        Choice(logits, bias, "sigmoid"),
        torch.tensor([0, 1], dtype=torch.int32),
        table_of((1, 2, 1.0), (0, 2, 1.0)),
        0,
        rule=FillRule(),
        scratch=ActiveSet.allocate(3, "cpu"),
    )
    assert ids.tolist() == [[1, -1], [2, 1]]


def test_steps_side_by_side_are_the_steps_one_by_one() -> None:
    """The vectorised form that quality is measured with."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 12, generator=generator)
    weights, ids = routed(logits, 4)
    k0 = torch.randint(0, 4, (5, 7), generator=generator)
    na, rescale = torch.full_like(k0, 4), torch.ones(5, 7)
    rule = FillRule(max_experts=6, min_share=0.01)
    long = ids.long()
    together = fill(weights, long, long, logits, logits.softmax(-1), k0, na, rescale, rule=rule)
    for step in range(5):
        table = table_of(*((int(k), 4, 1.0) for k in k0[step]))
        one_weights, one_ids = consolidated(logits[step], list(range(7)), table, top_k=4, rule=rule)
        assert torch.equal(one_ids.long(), together.ids[step])
        torch.testing.assert_close(one_weights, together.weights[step])


def test_behind_apply_skip_a_step_counts_once() -> None:
    """Kept, filled and touched are those of the result, for tokens of every kind."""
    from tests.routing.test_reference import one_row_table

    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 1.0, 5.0, 4.0, 3.0]])
    weights, ids = routed(logits, 3)
    choice, rows = Choice(logits, None, "softmax"), torch.tensor([0, 1], dtype=torch.int32)
    skip = one_row_table(2, 1.0)
    apply_skip(weights[1:], ids[1:], Choice(logits[1:], None, "softmax"), rows[:1], skip, 0)
    zeros = torch.zeros(2, dtype=torch.int32)
    stats = RoutingStats(zeros, torch.zeros(1, 6, dtype=torch.int32), zeros.clone())
    rule, scratch = FillRule(), ActiveSet.allocate(6, "cpu")
    consolidate(
        weights, ids, choice, rows, table_of((1, 3, 1.0), (0, 3, 1.0)), 0, rule=rule, scratch=scratch, stats=stats
    )
    assert ids.tolist() == [[0, 3, 4], [3, 4, -1]]
    assert stats.kept.tolist() == [3, 2]
    assert stats.filled is not None and stats.filled.tolist() == [2, 0]
    assert stats.touched.tolist() == [[1, 0, 0, 1, 1, 0]]


@pytest.mark.parametrize(("tokens", "slots"), [(0, 3), (2, 0)])
def test_nothing_to_do(tokens: int, slots: int) -> None:
    choice, rows = Choice(torch.zeros(tokens, 4), None, "softmax"), torch.zeros(2, dtype=torch.int32)
    ids = torch.zeros(tokens, slots, dtype=torch.int32)
    scratch = ActiveSet.allocate(4, "cpu")
    consolidate(
        torch.zeros(tokens, slots), ids, choice, rows, table_of((1, 2, 1.0)), 0, rule=FillRule(), scratch=scratch
    )
