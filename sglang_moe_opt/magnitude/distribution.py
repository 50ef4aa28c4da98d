"""How router weights are distributed in each layer: polarised on few experts, or even over all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.magnitude.weights import RouterWeights, Weights

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
POLARISED: Final = 0.5
"""A layer is called polarised where its tokens' weights are worth at most this share of the top-k in equal experts."""


@dataclass(frozen=True)
class LayerDistribution:
    """One layer's weights. Shares are of the token's own routed weight; quantiles over tokens are those of QUANTILES.

    Attributes:
        layer: the model's index of the layer.
        share_by_rank: mean share of a token's largest, second largest, ... weight; [K].
        first_share: quantiles of the largest weight's share.
        last_over_first: quantiles of the smallest kept weight over the largest: what min_ratio is compared with.
        entropy: mean entropy of the shares, nats.
        effective: mean of exp(entropy): as many equal experts would be as uncertain.
        effective_quantiles: its quantiles.
        mass: mean of the summed weights, as the experts get them.
        mean_na: mean number of experts with a weight.
        na_share: share of tokens with 0, 1, ... K such experts; [K + 1].
    """

    layer: int
    share_by_rank: list[float]
    first_share: list[float]
    last_over_first: list[float]
    entropy: float
    effective: float
    effective_quantiles: list[float]
    mass: float
    mean_na: float
    na_share: list[float]

    @property
    def is_polarised(self) -> bool:
        return self.effective <= POLARISED * len(self.share_by_rank)

    def to_object(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "polarised": self.is_polarised}


def describe(weights: RouterWeights, table: LayerTable | None = None) -> list[LayerDistribution]:
    """Every layer's distribution, under a schedule where one is given."""
    if table is None:
        layers, kept = weights.weights, np.ones(weights.weights.shape, np.bool_)
    else:
        layers, kept = weights.after(table), weights.kept(table)
    return [_describe(layer, own, keep) for layer, own, keep in zip(weights.layer_ids, layers, kept, strict=True)]


def _describe(layer: int, weights: Weights, keep: NDArray[np.bool_]) -> LayerDistribution:
    ordered = np.sort(weights.astype(np.float64), axis=1)[:, ::-1]
    mass = ordered.sum(axis=1, keepdims=True)
    shares = np.divide(ordered, mass, out=np.zeros_like(ordered), where=mass > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(shares * logs).sum(axis=1)
    effective = np.where(mass[:, 0] > 0, np.exp(entropy), 0)
    counts = keep.sum(axis=1)
    last = np.take_along_axis(ordered, np.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
    first = ordered[:, 0]
    last_over_first = np.divide(last, first, out=np.zeros_like(last), where=first > 0)
    return LayerDistribution(
        layer=layer,
        share_by_rank=_rounded(shares.mean(axis=0)),
        first_share=_rounded(np.quantile(shares[:, 0], QUANTILES)),
        last_over_first=_rounded(np.quantile(last_over_first, QUANTILES)),
        entropy=round(float(entropy.mean()), 5),
        effective=round(float(effective.mean()), 4),
        effective_quantiles=_rounded(np.quantile(effective, QUANTILES)),
        mass=round(float(mass.mean()), 5),
        mean_na=round(float(counts.mean()), 4),
        na_share=_rounded(np.bincount(counts, minlength=weights.shape[1] + 1) / len(counts)),
    )


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 5) for value in values]
