"""Greedy elimination: what the layer's output error says, tokens being routed anew after every removal."""

from __future__ import annotations

import numpy as np

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores

MAX_INPUTS = 4096
"""Of a layer: the time is proportional to them, to the experts and to the removals."""


def score(evidence: Evidence) -> Scores:
    """Raises ValueError where the checkpoint or the calibration's sampled inputs are missing."""
    from sglang_moe_opt.pruning.greedy import elimination_scores
    from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors
    from sglang_moe_opt.pruning.sample import sampled_inputs

    if evidence.checkpoint is None or evidence.statistics_folder is None:
        missing = "statistics" if evidence.statistics_folder is None else "model's folder"
        raise ValueError(f"{missing}: missing, and greedy needs the model's weights and sampled inputs")
    shape = evidence.shape
    with Tensors(evidence.checkpoint) as tensors:
        return np.stack(
            [
                elimination_scores(
                    MoELayer.read(tensors, layer_id),
                    sampled_inputs(evidence.statistics_folder, layer_id, MAX_INPUTS),
                    equal_groups=evidence.equal_groups,
                )
                for layer_id in shape.moe_layer_ids
            ]
        )


CRITERION = Criterion("greedy", "last to go when the one that is missed least goes first", score, needs_weights=True)
