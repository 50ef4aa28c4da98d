"""Ungated output norm: how much the expert puts out over the tokens that it serves, whatever weight they give it."""

from __future__ import annotations

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    return evidence.measured.norm


CRITERION = Criterion("norm", "sum of the output norm over routed tokens", score)
