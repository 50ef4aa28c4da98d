"""The CPU kernel of consolidation against the torch reference and the brute-force oracle."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from sglang_moe_opt.engine.cpu import consolidate as module
from sglang_moe_opt.engine.cpu import native
from sglang_moe_opt.engine.cpu.consolidate import consolidate
from sglang_moe_opt.routing import consolidate as reference_module
from tests.routing.cases import Case
from tests.routing.consolidation_cases import (
    ConsolidationCase,
    assert_same,
    build_problem,
    judge,
    random_consolidation_case,
    run,
)

reference = reference_module.consolidate


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if not native.ready():
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("tokens", [6, 80])
def test_agrees_with_reference_and_oracle(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the kernel did not take these tensors")

    monkeypatch.setattr(module, "consolidate_step", refuse)
    rng = random.Random(tokens)
    compared = fills = 0
    for _ in range(600 if tokens < 10 else 60):
        problem = build_problem(random_consolidation_case(rng, tokens))
        expected, clear = judge(problem)
        if clear:
            outcome = run(consolidate, problem)
            assert_same(outcome, expected)
            assert_same(outcome, run(reference, problem))
            compared += 1
            assert problem.stats.filled is not None
            fills += int((outcome.filled - problem.stats.filled).sum())
    assert compared > (400 if tokens < 10 else 10) and fills > 30, (compared, fills)


def test_what_the_kernel_does_not_cover_goes_to_the_reference() -> None:
    case = Case(seed=3, num_tokens=9, num_slots=5, num_shared=1, remapped=True, router=("sqrtsoftplus", True))
    for routing in (
        case,
        dataclasses.replace(case, num_shared=0, remapped=False),
        dataclasses.replace(case, router=("sigmoid", True), ids_dtype=torch.int64),
    ):
        problem = build_problem(ConsolidationCase(routing))
        assert_same(run(consolidate, problem), run(reference, problem))


def test_many_tokens_of_a_large_router() -> None:
    """DeepSeek-V3's: 256 experts in 8 groups, top-8."""
    routing = Case(seed=5, num_tokens=200, num_slots=8, extra_experts=31, router=("sigmoid", True), exact_weights=False)
    problem = build_problem(ConsolidationCase(routing, max_experts=96, num_groups=8))
    assert problem.choice.logits.shape[1] == 256
    assert_same(run(consolidate, problem), run(reference, problem))
