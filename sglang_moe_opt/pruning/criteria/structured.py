"""Structured choices by expert id alone: every other expert, or one end of the ids.

Each is an order of the ids, so that any number of experts can be kept and more kept means the same ones and others.
In the router's groups the order holds within each group.
"""

from __future__ import annotations

import numpy as np

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def even(evidence: Evidence) -> Scores:
    """0, 2, 4, ... at half; evenly spaced at any 1/2, 1/4, 3/4, ...: ids in the order of their reversed bits."""
    experts = evidence.shape.num_experts
    bits = (experts - 1).bit_length()
    return _every_layer(evidence, [-int(f"{expert:0{bits}b}"[::-1], 2) for expert in range(experts)])


def odd(evidence: Evidence) -> Scores:
    """1, 3, 5, ... at half: `even` with each pair of neighbours swapped; a last id without neighbour stays."""
    scores = even(evidence)
    paired = scores.shape[1] // 2 * 2
    swapped = scores.copy()
    swapped[:, :paired] = scores[:, :paired].reshape(len(scores), -1, 2)[:, :, ::-1].reshape(len(scores), -1)
    return swapped


def first_half(evidence: Evidence) -> Scores:
    """The lowest ids."""
    return _every_layer(evidence, -np.arange(evidence.shape.num_experts))


def last_half(evidence: Evidence) -> Scores:
    """The highest ids."""
    return _every_layer(evidence, np.arange(evidence.shape.num_experts))


def _every_layer(evidence: Evidence, scores: object) -> Scores:
    return np.tile(np.asarray(scores, np.float64), (evidence.shape.num_moe_layers, 1))


CRITERIA = tuple(
    Criterion(name, summary, score, needs_statistics=False)
    for name, summary, score in (
        ("odd", "evenly spaced ids, odd ones first", odd),
        ("even", "evenly spaced ids, even ones first", even),
        ("first_half", "the lowest ids", first_half),
        ("last_half", "the highest ids", last_half),
    )
)
