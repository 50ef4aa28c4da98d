"""Criteria by name: which experts a layer keeps."""

from __future__ import annotations

from typing import Final

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.pruning.criteria import easy_ep, greedy, hard, norm, random, reap, soft, structured
from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores

CRITERIA: Final[dict[str, Criterion]] = {
    criterion.name: criterion
    for criterion in (
        random.CRITERION,
        *structured.CRITERIA,
        hard.CRITERION,
        soft.CRITERION,
        reap.CRITERION,
        easy_ep.CRITERION,
        norm.CRITERION,
        greedy.CRITERION,
    )
}


def find_criterion(name: str) -> Criterion:
    """The criterion of that name. Raises FieldError."""
    if name not in CRITERIA:
        raise FieldError("criterion", name, ", ".join(CRITERIA))
    return CRITERIA[name]


__all__ = ["CRITERIA", "Criterion", "Evidence", "Scores", "find_criterion"]
