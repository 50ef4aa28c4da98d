"""EASY-EP (arXiv 2504.06792): contributions, counted more where the experts change the hidden state's direction."""

from __future__ import annotations

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    return evidence.measured.easy_ep


CRITERION = Criterion("easy_ep", "sum of weight x output norm x (1 - cos(before, after))", score)
