"""Soft count: the router weight that the expert received."""

from __future__ import annotations

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    return evidence.measured.soft


CRITERION = Criterion("soft", "sum of the router's weights", score)
