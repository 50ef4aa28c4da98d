"""The Triton kernel in the interpreter against the torch reference; run by ``test_triton_kernel.py``."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

from hypothesis import HealthCheck, given, settings

from sglang_moe_opt.routing import Choice, reference, triton_kernel
from tests.routing.cases import Case, assert_same, assert_unchanged_rows_are_identical, build, run
from tests.routing.oracle import judge
from tests.routing.strategies import cases

TOKENS: list[int] = []


@given(cases(max_tokens=24, max_extra_experts=150))
@settings(max_examples=600, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_kernel_equals_the_reference(case: Case) -> None:
    """600 launches, which are over 5,000 tokens, each under its own schedule; most launches span several programs."""
    problem = build(case)
    TOKENS.append(case.num_tokens)
    decided = judge(problem, case.exact_weights).decided
    outcome = run(triton_kernel.apply_skip, problem)
    assert_same(outcome, run(reference.apply_skip, problem), decided)
    assert_unchanged_rows_are_identical(outcome, problem)


def test_enough_tokens_were_compared() -> None:
    assert sum(TOKENS) >= 5000, sum(TOKENS)


def test_many_tokens() -> None:
    """A prefill-sized launch."""
    case = Case(seed=1, num_tokens=1000, num_slots=8, num_shared=1, router=("sigmoid", True), extra_experts=56)
    problem = build(case)
    verdict = judge(problem, case.exact_weights)
    assert_same(run(triton_kernel.apply_skip, problem), verdict.outcome, verdict.decided)


def test_no_tokens_launch_nothing() -> None:
    problem = build(Case(seed=1, num_tokens=1, num_slots=4))
    choice = Choice(problem.choice.logits[:0], None, "softmax")
    rows, table = problem.rows, problem.table
    triton_kernel.apply_skip(problem.weights[:0], problem.ids[:0], choice, rows, table, 0)


def test_separated_columns_are_refused() -> None:
    problem = build(Case(seed=1, num_tokens=3, num_slots=4))
    transposed = problem.ids.t().contiguous().t()
    with pytest.raises(ValueError, match="ids has column stride 3"):
        triton_kernel.apply_skip(problem.weights, transposed, problem.choice, problem.rows, problem.table, 0)
