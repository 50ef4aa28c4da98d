"""Structured choices by expert id alone: every other expert, or one end of the ids.

Each is an order of the ids, so that any number of experts can be kept and more kept means the same ones and others.
In the router's groups the order holds within each group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.pruning.criteria.base import Criterion, Evidence, Scores


def even(evidence: Evidence) -> Scores:
    """0, 2, 4, ... at half; evenly spaced at 1/2, 1/4, 3/4, ...: ids in the order of their reversed bits."""
    return _every_layer(evidence, _reversed_bits(np.arange(evidence.shape.num_experts)))


def odd(evidence: Evidence) -> Scores:
    """1, 3, 5, ... at half: `even` with each pair of neighbours swapped."""
    return _every_layer(evidence, _reversed_bits(np.arange(evidence.shape.num_experts) ^ 1))


def first_half(evidence: Evidence) -> Scores:
    """The lowest ids."""
    return _every_layer(evidence, -np.arange(evidence.shape.num_experts))


def last_half(evidence: Evidence) -> Scores:
    """The highest ids."""
    return _every_layer(evidence, np.arange(evidence.shape.num_experts))


def _reversed_bits(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Minus the number that an id's bits give from right to left."""
    reversed_bits, rest = np.zeros_like(ids), ids
    for _ in range(int(ids.max()).bit_length()):
        reversed_bits, rest = reversed_bits << 1 | rest & 1, rest >> 1
    return -reversed_bits


def _every_layer(evidence: Evidence, scores: NDArray[np.int64]) -> Scores:
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
