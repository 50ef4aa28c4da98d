"""How many distinct experts a batch touches: even routing, skewed routing, and what calibration measured.

A layer's routing is a vector of inclusion probabilities: how likely each expert is among a token's experts; its sum is
na. Tokens are taken as independent, so a batch of n leaves expert i alone with probability (1 - q_i)^n.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ROUNDS: Final = 64


@lru_cache(maxsize=256)
def lognormal_popularity(num_experts: int, skew: float) -> tuple[float, ...]:
    """Relative popularity of a layer's experts whose logarithm is normal with standard deviation `skew`; 0 is even.

    The experts are the quantiles in the middles of equal parts, descending, so that nothing is drawn.
    """
    quantiles = [NormalDist().inv_cdf((expert + 0.5) / num_experts) for expert in range(num_experts)]
    weights = np.exp(-skew * np.array(quantiles))
    return tuple((weights / weights.mean()).tolist())


def inclusion(popularity: Array | tuple[float, ...], na: float) -> Array:
    """Inclusion probabilities float64 [E], in proportion to popularity where that is below 1, with the sum na.

    Experts that would be above 1 are in every token's choice, and the rest share what is left. ValueError if na is
    below 0 or above the number of experts with any popularity.
    """
    weights = np.asarray(popularity, np.float64)
    positive = int((weights > 0).sum())
    if not 0 <= na <= positive:
        raise ValueError(f"na: got {na}, allowed: 0 to {positive} experts that are ever chosen")
    result: Array = np.zeros(len(weights))
    free = weights > 0
    left = float(na)
    for _ in range(_ROUNDS):
        share: Array = np.where(free, weights, 0.0)
        total = share.sum()
        if total <= 0 or left <= 0:
            break
        share *= left / total
        above = share >= 1
        if not above.any():
            return result + share
        result[above] = 1.0
        free &= ~above
        left = na - float(result.sum())
    return result


def touched(probabilities: Array, tokens: float) -> Array:
    """How likely each expert is to be touched by at least one of `tokens` tokens: float64 [E]."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(tokens * np.log1p(-probabilities)), dtype=np.float64)


@lru_cache(maxsize=65536)
def touched_by_skew(num_experts: int, na: float, tokens: float, skew: float) -> tuple[float, float]:
    """Mean and variance of the distinct experts that `tokens` tokens touch under log-normal popularity."""
    return moments(touched(inclusion(lognormal_popularity(num_experts, skew), na), tokens))


def moments(probabilities: Array) -> tuple[float, float]:
    """Mean and variance of how many experts are touched, experts taken as independent."""
    return float(probabilities.sum()), float((probabilities * (1 - probabilities)).sum())
