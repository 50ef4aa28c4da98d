"""Hard count: how often the router chose the expert."""

from __future__ import annotations

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    return evidence.measured.hard


CRITERION = Criterion("hard", "times in a token's top-k", score)
