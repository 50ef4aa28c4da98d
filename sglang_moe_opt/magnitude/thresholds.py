"""Thresholds of `min_ratio`, `min_weight` and `top_p` for which a sample keeps a given mean number of experts. Pure.

Each slot of each token has one critical value, at which the rule starts to drop it. A budget is a number of slots, so
that its threshold lies between two neighbours among the sorted critical values: no search is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.magnitude.weights import RouterWeights, Weights, mass_before

Rule = Literal["min_ratio", "min_weight", "top_p"]
RULES: Final[tuple[Rule, ...]] = ("min_ratio", "min_weight", "top_p")
DIGITS: Final = 6
"""Significant digits of a threshold: more say nothing on a sample, and policies are read by people."""


def one_threshold(weights: RouterWeights, rule: Rule, mean_na: float, min_na: int = 1) -> float:
    """The threshold that keeps `mean_na` experts on average over all layers; layers then keep different numbers.

    Raises FieldError where the rule cannot keep so few or so many.
    """
    return _solve(priorities(weights.weights, rule, min_na), rule, mean_na, weights.top_k, "mean_na")


def layer_thresholds(
    weights: RouterWeights, rule: Rule, mean_na: Sequence[float], min_na: int = 1
) -> tuple[float, ...]:
    """A threshold for each layer that keeps `mean_na[layer]` experts there on average. Raises FieldError."""
    if len(mean_na) != len(weights.layer_ids):
        raise FieldError("layer_na", list(mean_na), f"a list of {len(weights.layer_ids)} numbers, one per MoE layer")
    kept = [priorities(layer, rule, min_na) for layer in weights.weights]
    return tuple(
        _solve(layer, rule, mean, weights.top_k, f"layer_na[{index}]")
        for index, (layer, mean) in enumerate(zip(kept, mean_na, strict=True))
    )


def priorities(weights: Weights, rule: Rule, min_na: int) -> NDArray[np.float64]:
    """How long the rule keeps each slot, of weights [..., N, K]: a higher value is dropped later, inf never.

    A slot stays while its value is at least `min_ratio` or `min_weight`, or above 1 - `top_p`.
    """
    exact: NDArray[np.float64] = weights.astype(np.float64)
    tiny = np.finfo(np.float64).tiny
    if rule == "min_ratio":
        value: NDArray[np.float64] = exact / np.maximum(exact.max(axis=-1, keepdims=True), tiny)
    elif rule == "min_weight":
        value = exact
    else:
        total = np.maximum(exact.sum(axis=-1, keepdims=True), tiny)
        value = 1 - mass_before(weights).astype(np.float64) / total
    value[value >= 1] = np.inf
    value[..., :min_na] = np.inf
    return value


def _solve(value: NDArray[np.float64], rule: Rule, mean_na: float, top_k: int, field: str) -> float:
    tokens = value.size // top_k
    ordered = np.sort(value, axis=None)[::-1]
    always = int(np.isinf(ordered).sum())
    if not always / tokens - 0.005 <= mean_na <= top_k:
        raise FieldError(field, round(float(mean_na), 4), f"a number from {always / tokens:.2f} to {top_k} ({rule})")
    wanted = max(round(mean_na * tokens), always)
    above = ordered[wanted - 1] if wanted > always else 1.0
    below = ordered[wanted] if wanted < len(ordered) else 0.0
    between = float(above + below) / 2 if below < above else float(above)
    return _shortest(1 - between if rule == "top_p" else between, rule)


def _shortest(threshold: float, rule: Rule) -> float:
    """Rounded to DIGITS, within what the rule allows."""
    rounded = float(f"{threshold:.{DIGITS}g}")
    return min(max(rounded, 1e-6 if rule == "top_p" else 0.0), 1.0)
