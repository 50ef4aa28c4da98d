"""The consolidation kernels in the interpreter against the torch reference; run by ``test_triton_kernel.py``."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)

from hypothesis import HealthCheck, given, settings

from sglang_moe_opt.routing import consolidate as reference
from sglang_moe_opt.routing import consolidate_triton
from tests.routing.cases import ROUTERS, Case
from tests.routing.consolidation_cases import (
    ConsolidationCase,
    assert_same,
    build_problem,
    judge,
    run,
)
from tests.routing.strategies import consolidation_cases

COMPARED: list[int] = []
FILLED: list[int] = []


@given(consolidation_cases(max_tokens=12))
@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_kernels_equal_the_reference(case: ConsolidationCase) -> None:
    compare(case)


def compare(case: ConsolidationCase) -> None:
    problem = build_problem(case)
    if not judge(problem)[1]:
        return
    outcome = run(consolidate_triton.consolidate, problem)
    assert_same(outcome, run(reference.consolidate, problem))
    assert problem.stats.filled is not None
    COMPARED.append(case.routing.num_tokens)
    FILLED.append(int((outcome.filled - problem.stats.filled).sum()))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(("max_experts", "groups"), [(0, 1), (0, 4), (30, 1)])
def test_batches_with_much_to_fill(router: tuple[str, bool], max_experts: int, groups: int) -> None:
    routing = Case(seed=9, num_tokens=12, num_slots=8, extra_experts=56 // groups, router=router)
    compare(ConsolidationCase(routing, max_experts=max_experts, num_groups=groups))


def test_enough_was_compared() -> None:
    assert len(COMPARED) > 100 and sum(FILLED) > 100, (len(COMPARED), sum(FILLED))


@pytest.mark.parametrize("max_experts", [0, 96])
def test_a_batch_of_deepseek_v3(max_experts: int) -> None:
    """256 experts in 8 groups, top-8; several programs of each kernel."""
    routing = Case(
        seed=5,
        num_tokens=48,
        num_slots=8,
        extra_experts=31,
        router=("sigmoid", True),
        exact_weights=False,
        num_shared=1,
    )
    problem = build_problem(ConsolidationCase(routing, max_experts=max_experts, num_groups=8))
    assert problem.choice.logits.shape[1] == 256
    assert judge(problem)[1]
    assert_same(run(consolidate_triton.consolidate, problem), run(reference.consolidate, problem))


def test_separated_columns_are_refused() -> None:
    problem = build_problem(ConsolidationCase(Case(seed=1, num_tokens=3, num_slots=4)))
    problem.ids = problem.ids.t().contiguous().t()
    with pytest.raises(ValueError, match="ids has column stride 3"):
        run(consolidate_triton.consolidate, problem)
