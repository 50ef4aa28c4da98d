"""Greedy elimination: what the layer's output error says, tokens being routed anew after every removal."""

from __future__ import annotations

import numpy as np

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores

MAX_BYTES = 1 << 30
"""Of all experts' outputs on the sampled inputs of a layer, float32; fewer inputs are taken where they need more."""


def score(evidence: Evidence) -> Scores:
    """Raises ValueError where the checkpoint or the calibration's sampled inputs are missing."""
    from sglang_moe_opt.pruning.greedy import elimination_scores
    from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors
    from sglang_moe_opt.pruning.sample import sampled_inputs

    if evidence.checkpoint is None or evidence.statistics_folder is None:
        raise ValueError("criterion: greedy needs the model's folder and --statistics with sampled inputs")
    shape = evidence.shape
    most = MAX_BYTES // (4 * shape.num_experts * shape.hidden_size)
    with Tensors(evidence.checkpoint) as tensors:
        return np.stack(
            [
                elimination_scores(
                    MoELayer.read(tensors, layer_id),
                    sampled_inputs(evidence.statistics_folder, layer_id, most),
                    equal_groups=evidence.equal_groups,
                )
                for layer_id in shape.moe_layer_ids
            ]
        )


CRITERION = Criterion("greedy", "last to go when the one that is missed least goes first", score)
