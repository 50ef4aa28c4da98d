"""Small shapes and statistics to plan on."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.criteria import Evidence
from sglang_moe_opt.pruning.statistics import ExpertStatistics


def plain_shape(layers: int = 2, experts: int = 8, top_k: int = 2) -> MoEShape:
    """A router without groups, behind one dense layer."""
    return MoEShape(layers + 1, tuple(range(1, layers + 1)), top_k, experts, 1, False, "softmax")


def grouped_shape(layers: int = 2, experts: int = 8, top_k: int = 2, groups: int = 2, topk_group: int = 1) -> MoEShape:
    """A router that scores groups by their two best experts."""
    ids = tuple(range(1, layers + 1))
    return MoEShape(layers + 1, ids, top_k, experts, 1, True, "sigmoid", n_group=groups, topk_group=topk_group)


def make_statistics(shape: MoEShape, seed: int = 0, **arrays: Any) -> ExpertStatistics:
    """Random sums, but for the `arrays` that are given."""
    generator = np.random.default_rng(seed)
    size = (shape.num_moe_layers, shape.num_experts)
    sums: dict[str, Any] = {name: generator.random(size) for name in ("soft", "reap", "easy_ep", "norm")}
    sums["hard"] = generator.integers(0, 50, size).astype(np.float64)
    sums["coactivation"] = np.zeros((*size, size[1]))
    provenance = arrays.pop("provenance", {})
    return ExpertStatistics(shape.moe_layer_ids, 100, **(sums | arrays), provenance=provenance)


def make_evidence(shape: MoEShape, seed: int = 0, **arrays: Any) -> Evidence:
    return Evidence(shape, seed, make_statistics(shape, **arrays))
