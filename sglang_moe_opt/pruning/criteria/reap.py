"""REAP (arXiv 2510.13999): an expert's mean contribution to the tokens that it serves."""

from __future__ import annotations

import numpy as np

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    """Mean over routed tokens of gate weight x ||output||; 0 for an expert that no token chose."""
    statistics = evidence.measured
    return statistics.reap / np.maximum(statistics.hard, 1)


CRITERION = Criterion("reap", "mean over routed tokens of weight x output norm", score)
