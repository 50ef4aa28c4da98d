"""Router weights of sampled tokens, and what a schedule does to them: `apply_skip` in numpy. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.layer_table import MASS, LayerTable

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class RouterWeights:
    """Top-k weights of N tokens in L MoE layers.

    Attributes:
        layer_ids: the model's 0-based index of each MoE layer, ascending.
        weights: float32 [L, N, K], each token's slots by falling choice score, which is not always the weight
            (sigmoid + bias); renormalised where the router does that, before `routed_scaling_factor`.

    Raises:
        ValueError: arrays that do not fit each other, or no tokens.
    """

    layer_ids: tuple[int, ...]
    weights: Weights

    def __post_init__(self) -> None:
        shape = self.weights.shape
        if len(shape) != 3 or shape[0] != len(self.layer_ids) or 0 in shape:
            raise ValueError(f"weights: shape {shape}, expected [{len(self.layer_ids)}, tokens, slots]")

    @property
    def tokens(self) -> int:
        return int(self.weights.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.weights.shape[2])

    def kept(self, table: LayerTable) -> NDArray[np.bool_]:
        """Which slots a schedule keeps, bool [L, N, K], computed as by `apply_skip`. ValueError: other layers."""
        if len(table) != len(self.layer_ids):
            raise ValueError(f"table: {len(table)} layers, expected {len(self.layer_ids)}")
        return np.stack([_kept(layer, table, index) for index, layer in enumerate(self.weights)])

    def mean_na(self, table: LayerTable) -> NDArray[np.float64]:
        """Mean number of kept experts in each layer, float64 [L]."""
        return np.asarray(self.kept(table).sum(axis=2).mean(axis=1), np.float64)

    def after(self, table: LayerTable) -> Weights:
        """The weights under a schedule, [L, N, K]: 0 where dropped, the kept ones rescaled."""
        keep = self.kept(table)
        kept_weights = np.where(keep, self.weights, np.float32(0))
        kept_mass = np.maximum(kept_weights.sum(axis=2, keepdims=True), np.float32(1e-20))
        dropped_mass = np.where(keep, np.float32(0), self.weights).sum(axis=2, keepdims=True)
        rescale = table.rescale[:, None, None]
        drops = ~keep.all(axis=2, keepdims=True)
        factor = np.where(rescale == MASS, 1 + dropped_mass / kept_mass, np.where(drops, rescale, np.float32(1)))
        return np.asarray(kept_weights * factor, np.float32)


def _kept(weights: Weights, table: LayerTable, index: int) -> NDArray[np.bool_]:
    """One layer of `RouterWeights.kept`: weights [N, K] to bool [N, K]."""
    rank = np.arange(weights.shape[1])
    passes = np.ones(weights.shape, np.bool_)
    if (ratio := table.min_ratio[index]) > 0:
        passes &= weights >= ratio * weights.max(axis=1, keepdims=True)
    if ratio < 0:
        passes &= weights >= -ratio
    if table.top_p[index] < 1:
        passes &= mass_before(weights) < table.top_p[index] * weights.sum(axis=1, keepdims=True)
    kept: NDArray[np.bool_] = (passes | (rank < table.min_na[index])) & (rank < table.na[index])
    return kept


def mass_before(weights: Weights) -> Weights:
    """Of each slot the weight of its token's slots that are larger; of equal ones the better ranked is larger."""
    order = np.argsort(-weights, axis=-1, kind="stable")
    reached = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    before = np.concatenate([np.zeros_like(reached[..., :1]), reached[..., :-1]], axis=-1)
    result = np.empty_like(weights)
    np.put_along_axis(result, order, before, axis=-1)
    return result
