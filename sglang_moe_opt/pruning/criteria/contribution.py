"""Contribution: how much the expert adds to the layer's output over the whole text."""

from __future__ import annotations

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    """The sum of which REAP takes the mean: an expert that serves many tokens counts for all of them."""
    return evidence.measured.reap


CRITERION = Criterion("contribution", "sum of weight x output norm over routed tokens", score)
