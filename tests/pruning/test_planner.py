"""Plans from statistics, criteria and budgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.pruning.budget import Budget
from sglang_moe_opt.pruning.criteria import CRITERIA, Evidence
from sglang_moe_opt.pruning.planner import make_plan
from sglang_moe_opt.pruning.sensitivity import Sensitivity
from tests.pruning.evidence import grouped_shape, make_evidence, plain_shape

MODEL = "0123456789abcdef" * 2


def test_the_highest_scores_are_kept() -> None:
    soft = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]], np.float64)
    evidence = make_evidence(plain_shape(), soft=soft)
    plan = make_plan(evidence, CRITERIA["soft"], Budget(3), model=MODEL, name="tiny", provenance={"corpus": "x"})
    assert plan.layers == {1: (5, 6, 7), 2: (0, 1, 2)}
    assert (plan.model, plan.name, plan.num_experts) == (MODEL, "tiny", 8)
    assert plan.method == {"criterion": "soft", "keep": 3, "budget": "uniform"}
    assert plan.provenance == {"corpus": "x"}


FROM_STATISTICS = sorted(name for name, criterion in CRITERIA.items() if not criterion.needs_weights)


@given(st.sampled_from(FROM_STATISTICS), st.integers(0, 99), st.booleans(), st.booleans(), st.booleans())
def test_every_criterion_and_budget_runs(name: str, seed: int, grouped: bool, spread: bool, equal: bool) -> None:
    shape = grouped_shape(layers=3, experts=12, groups=3, topk_group=2, top_k=4) if grouped else plain_shape(layers=3)
    plan = make_plan(
        make_evidence(shape, seed=seed), CRITERIA[name], Budget(6, spread=spread, equal_groups=equal), model=MODEL
    )
    plan.check(shape, MODEL)
    assert sum(map(len, plan.layers.values())) == 18
    assert plan.is_uniform or spread
    assert plan.method.get("seed") == (seed if name == "random" else None)
    assert plan.method.get("groups") == (("equal" if equal else "unequal") if grouped else None)
    if equal:
        assert plan.gate_mode(shape) == "shrink"


def test_a_global_budget_goes_where_contributions_are_spread() -> None:
    """Layer 1 lives on two experts, layer 2 on all of them."""
    reap = np.array([[50, 50, 0, 0, 0, 0, 0, 0], [1] * 8], np.float64)
    evidence = make_evidence(plain_shape(), reap=reap, hard=np.ones((2, 8)))
    plan = make_plan(evidence, CRITERIA["reap"], Budget(5, spread=True), model=MODEL)
    assert plan.layers == {1: (0, 1), 2: tuple(range(8))}
    assert plan.method == {"criterion": "reap", "keep": 5, "budget": "global"}


def test_measured_sensitivities_need_no_statistics() -> None:
    shape = plain_shape()
    sensitivity = Sensitivity.from_object({"layers": {"1": {"4": 3.0}, "2": {"4": 1.0}}}, shape)
    budget = Budget(4, spread=True)
    plan = make_plan(Evidence(shape), CRITERIA["first_half"], budget, model=MODEL, sensitivity=sensitivity)
    assert plan.layers == {1: (0, 1, 2, 3, 4, 5), 2: (0, 1)}  # 3 x 2^2 + 1 x 6^2, less than 3 x 3^2 + 1 x 5^2 = 52
    assert plan.method["sensitivity"] == {"layers": {"1": {"4": 3.0}, "2": {"4": 1.0}}, "unit": ""}
    with pytest.raises(ValueError, match="budget: spread over layers it needs statistics or measured sensitivities"):
        make_plan(Evidence(shape), CRITERIA["first_half"], budget, model=MODEL)


def test_statistics_of_another_model_are_refused() -> None:
    soft, budget = CRITERIA["soft"], Budget(4)
    other = make_evidence(plain_shape(layers=3))
    for shape in (plain_shape(), plain_shape(layers=3, experts=12)):
        with pytest.raises(FieldError, match=r"statistics: got .* with 8 experts"):
            make_plan(Evidence(shape, 0, other.statistics), soft, budget, model=MODEL)
    stranger = make_evidence(plain_shape(), provenance={"job": {"model": "f" * 32}})
    with pytest.raises(FieldError, match=f"statistics: got 'f*', allowed: those of the model .* {MODEL}"):
        make_plan(stranger, soft, budget, model=MODEL)
    same = make_evidence(plain_shape(), provenance={"job": {"model": MODEL}})
    make_plan(same, soft, budget, model=MODEL)
