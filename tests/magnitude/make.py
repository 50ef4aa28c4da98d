"""Router weights to calibrate on, of the two kinds that routers give."""

from __future__ import annotations

import numpy as np

from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.model_shape import MoEShape

SHAPE = MoEShape(5, (1, 2, 3, 4), 6, 64, 1, True, "sigmoid")
"""Four MoE layers with top-6, a router that renormalises."""


def make_weights(
    seed: int = 0, tokens: int = 400, steepness: tuple[float, ...] = (0.3, 1.0, 2.0, 3.0)
) -> RouterWeights:
    """A layer for each steepness: from nearly even weights to polarised ones; slots roughly by falling weight."""
    generator = np.random.default_rng(seed)
    layers = []
    for scale in steepness:
        logits = scale * np.sort(generator.normal(size=(tokens, SHAPE.top_k)), axis=1)[:, ::-1]
        noisy = logits + 0.05 * generator.normal(size=logits.shape)  # the choice score is not quite the weight
        exact = np.exp(noisy)
        layers.append(exact / exact.sum(axis=1, keepdims=True))
    return RouterWeights(SHAPE.moe_layer_ids[: len(steepness)], np.stack(layers).astype(np.float32))
