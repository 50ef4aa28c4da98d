"""From statistics, a criterion and a budget to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.pruning.budget import Budget
from sglang_moe_opt.pruning.criteria import Criterion, Evidence
from sglang_moe_opt.pruning.ranking import Ranking, rank
from sglang_moe_opt.pruning.sensitivity import Sensitivity


def make_plan(
    evidence: Evidence,
    criterion: Criterion,
    budget: Budget,
    *,
    model: str,
    name: str = "",
    sensitivity: Sensitivity | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PrunePlan:
    """The plan that keeps what `criterion` ranks highest within `budget`.

    Args:
        evidence: the model's shape and what is known of its experts.
        criterion: what ranks the experts of a layer.
        budget: how many are kept.
        model: fingerprint of the full model.
        name: of the model, for people.
        sensitivity: measured losses that spread the budget; without it, a layer's loss is the share of its
            contribution (router weight x output norm, summed over the calibration) that removed experts hold.
        provenance: what else to record.

    Raises:
        ValueError: statistics of another model, a budget that the router's groups or top-k forbid, or one that is
            spread with nothing to tell what layers lose.
    """
    shape = evidence.shape
    check_statistics(evidence, model)
    ranking = rank(criterion.score(evidence), shape, equal_groups=budget.equal_groups)
    counts = budget.counts(ranking, shape, layer_losses(evidence, ranking, sensitivity) if budget.spread else None)
    method: dict[str, Any] = {
        "criterion": criterion.name,
        "keep": budget.keep,
        "budget": "global" if budget.spread else "uniform",
    }
    if shape.n_group > 1:
        method["groups"] = "equal" if budget.equal_groups else "unequal"
    if criterion.uses_seed:
        method["seed"] = evidence.seed
    if budget.spread and sensitivity is not None:
        method["sensitivity"] = sensitivity.to_object()
    plan = PrunePlan(
        model=model,
        name=name,
        num_experts=shape.num_experts,
        layers=dict(zip(shape.moe_layer_ids, ranking.kept(counts), strict=True)),
        method=method,
        provenance=dict(provenance or {}),
    )
    plan.check(shape, model)
    return plan


def layer_losses(evidence: Evidence, ranking: Ranking, sensitivity: Sensitivity | None) -> NDArray[np.float64]:
    """What each layer loses at each count that it may keep: float64 [L, len(ranking.counts)]. Raises ValueError."""
    statistics = evidence.statistics
    shares = ranking.shares_lost(statistics.reap) if statistics is not None else None
    if sensitivity is not None:
        return sensitivity.loss(ranking, shares)
    if shares is None:
        raise ValueError("budget: spread over layers it needs statistics or measured sensitivities")
    return shares


def check_statistics(evidence: Evidence, model: str) -> None:
    """Raise FieldError unless the statistics, where there are any, are of this model and of at least one token."""
    statistics, shape = evidence.statistics, evidence.shape
    if statistics is None:
        return
    job = statistics.provenance.get("job")
    recorded = job.get("model", model) if isinstance(job, dict) else model
    if recorded != model:
        raise FieldError("statistics", recorded, f"those of the model with the fingerprint {model}")
    if statistics.layer_ids != shape.moe_layer_ids or statistics.num_experts != shape.num_experts:
        found = f"layers {statistics.layer_ids} with {statistics.num_experts} experts"
        raise FieldError("statistics", found, f"the model's layers {shape.moe_layer_ids} with {shape.num_experts}")
    if statistics.tokens < 1:
        raise FieldError("statistics.tokens", statistics.tokens, "at least 1")
