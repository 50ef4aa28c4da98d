"""Random: the floor that every other criterion has to beat."""

from __future__ import annotations

import numpy as np

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def score(evidence: Evidence) -> Scores:
    """Uniform numbers, each layer from its own stream: a layer keeps the same experts in a longer model."""
    _, experts = evidence.size
    return np.stack([np.random.default_rng((evidence.seed, i)).random(experts) for i in evidence.shape.moe_layer_ids])


CRITERION = Criterion("random", "drawn with --seed", score, needs_statistics=False, uses_seed=True)
