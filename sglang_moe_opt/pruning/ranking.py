"""From scores to kept experts: each layer's order of experts, such that the first n are what a budget of n keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import min_per_group


@dataclass(frozen=True)
class Ranking:
    """Every layer's experts, best first, within the rules of the router's groups.

    Attributes:
        order: int64 [L, E], expert ids.
        counts: how many experts a layer may keep, ascending; the last is E.
    """

    order: NDArray[np.int64]
    counts: tuple[int, ...]

    def kept(self, counts: NDArray[np.int64]) -> list[tuple[int, ...]]:
        """The ids that each layer keeps, ascending, for `counts` int64 [L]."""
        return [tuple(sorted(ids[:n].tolist())) for ids, n in zip(self.order, counts.tolist(), strict=True)]

    def shares_lost(self, mass: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of a layer's `mass` [L, E] (>= 0) that removed experts hold: float64 [L, len(counts)].

        A layer without mass loses in proportion to the experts removed.
        """
        mass = np.where(mass.sum(-1, keepdims=True) > 0, mass, 1.0)
        held = np.take_along_axis(mass, self.order, -1).cumsum(-1)
        return 1.0 - held[:, np.array(self.counts) - 1] / held[:, -1:]


def rank(scores: NDArray[np.float64], shape: MoEShape, *, equal_groups: bool = True) -> Ranking:
    """Order experts by `scores` [L, E], ties by id.

    With groups (n_group > 1) either all groups of a layer keep the same number (`equal_groups`: the best of every
    group, then the second of every group, ...), or each group keeps as many of its best as any choice of groups needs
    for top-k, and the rest goes by score. Both keep each group's best first. Raises ValueError on scores that are no
    numbers or of a wrong shape.
    """
    if scores.shape != (size := (shape.num_moe_layers, shape.num_experts)):
        raise ValueError(f"scores: shape {scores.shape}, expected {size}")
    if not np.isfinite(scores).all():
        raise ValueError("scores: not all are numbers")
    by_score = np.argsort(-scores, axis=-1, kind="stable")
    if shape.n_group == 1:
        return Ranking(by_score, tuple(range(shape.top_k, shape.num_experts + 1)))
    each = experts_per_group(shape)
    place = np.argsort(by_score, axis=-1)  # [L, E]: each expert's place in the layer
    place_in_group = np.argsort(np.argsort(place.reshape(len(scores), shape.n_group, -1), axis=-1), axis=-1)
    place_in_group = place_in_group.reshape(scores.shape)
    tier = place_in_group if equal_groups else place_in_group >= each
    step = shape.n_group if equal_groups else 1
    return Ranking(np.lexsort((place, tier), axis=-1), tuple(range(each * shape.n_group, shape.num_experts + 1, step)))


def experts_per_group(shape: MoEShape) -> int:
    """The fewest experts that every group keeps, so that whichever groups the router chooses hold top-k."""
    return max(min_per_group(shape), math.ceil(shape.top_k / shape.topk_group))
