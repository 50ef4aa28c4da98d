"""Exact allocation: the schedules of least predicted loss within a budget, by dynamic programming. Pure.

The budget is a sum over layers of a weight that depends on the layer's na: experts, bytes, or
seconds. Terms between neighbouring layers are exact too: the state is what is spent and the last layer's na.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MAX_UNITS: Final = 1024
"""Finest division of a budget whose weights are no small whole numbers; rounding is upwards, so never over budget."""


@dataclass(frozen=True)
class Allocation:
    """A schedule with what it is predicted to lose and what it spends of the budget."""

    layers: tuple[int, ...]
    loss: float
    spent: float


@dataclass(frozen=True)
class Problem:
    """What there is to choose from.

    Attributes:
        levels: na that a layer may have, ascending; the same for all layers.
        costs: float64 [L, len(levels)], predicted loss of each layer at each level.
        pairs: float64 [L - 1, len(levels), len(levels)], added for neighbouring layers; None without such terms.
        weights: float64 [L, len(levels)] >= 0, what each level spends.
    """

    levels: tuple[int, ...]
    costs: Array
    pairs: Array | None
    weights: Array

    def __post_init__(self) -> None:
        shape = (len(self.costs), len(self.levels))
        if self.costs.shape != shape or self.weights.shape != shape:
            raise ValueError(f"allocation: costs {self.costs.shape} and weights {self.weights.shape}, expected {shape}")
        if self.pairs is not None and self.pairs.shape != (shape[0] - 1, shape[1], shape[1]):
            raise ValueError(f"allocation: pairs {self.pairs.shape} do not fit {shape[0]} layers")
        if (self.weights < 0).any() or not np.isfinite(self.weights).all() or not np.isfinite(self.costs).all():
            raise ValueError("allocation: weights must be finite and >= 0, costs finite")

    def loss(self, picks: Sequence[int]) -> float:
        """Sum of the terms at these indices of `levels`."""
        total = float(sum(self.costs[layer, pick] for layer, pick in enumerate(picks)))
        if self.pairs is not None:
            total += float(sum(self.pairs[i, a, b] for i, (a, b) in enumerate(pairwise(picks))))
        return total

    def best(self, budget: float, top: int = 1) -> list[Allocation]:
        """The `top` schedules of least loss that spend at most `budget`, best first; fewer where there are fewer.

        Raises ValueError where even the least spends more.
        """
        table = self._solve(budget, top)
        found = self._collect(table, range(len(table.losses[-1])), top)
        return found or [self._least(budget)]

    def _least(self, budget: float) -> Allocation:
        """What spends the least, which rounding may have hidden. Raises ValueError where that is over the budget."""
        ways = [min(zip(w, c, range(len(w)), strict=True)) for w, c in zip(self.weights, self.costs, strict=True)]
        picks = [pick for _, _, pick in ways]
        spent = float(sum(weight for weight, _, _ in ways))
        if spent > budget * (1 + 1e-12):
            raise ValueError(f"budget: got {budget:g}, allowed: at least {spent:g}")
        return Allocation(tuple(self.levels[pick] for pick in picks), self.loss(picks), spent)

    def front(self, budget: float) -> list[Allocation]:
        """Best schedule for every amount spent up to `budget` at which the loss gets smaller, cheapest first."""
        table = self._solve(budget, 1)
        found: list[Allocation] = []
        for units in range(len(table.losses[-1])):
            best = self._collect(table, range(units, units + 1), 1)
            if best and (not found or best[0].loss < found[-1].loss - 1e-12):
                found += best
        return found

    def _solve(self, budget: float, top: int) -> _Table:
        unit, steps = _units(self.weights, budget)
        size = int(budget / unit + 1e-9) + 1
        count, depth = len(self.levels), max(1, top)
        losses: list[Array] = []
        origins: list[NDArray[np.int64]] = []
        state = np.full((size, count, depth), np.inf)
        for pick in range(count):
            if steps[0, pick] < size:
                state[steps[0, pick], pick, 0] = self.costs[0, pick]
        losses.append(state)
        origins.append(np.full(state.shape, -1, np.int64))
        for layer in range(1, len(self.costs)):
            before, state = state, np.full((size, count, depth), np.inf)
            origin = np.full(state.shape, -1, np.int64)
            for pick in range(count):
                step = steps[layer, pick]
                if step >= size:
                    continue
                ways = before[: size - step] + self.costs[layer, pick]
                if self.pairs is not None:
                    ways = ways + self.pairs[layer - 1, :, pick][None, :, None]
                flat = ways.reshape(len(ways), count * depth)
                kept = np.argsort(flat, axis=1, kind="stable")[:, :depth]
                state[step:, pick] = np.take_along_axis(flat, kept, axis=1)
                origin[step:, pick] = kept
            losses.append(state)
            origins.append(origin)
        return _Table(steps, losses, origins)

    def _collect(self, table: _Table, units: range, top: int) -> list[Allocation]:
        last = table.losses[-1][units.start : units.stop]
        order = np.argsort(last, axis=None, kind="stable")[:top]
        found = []
        for place in order:
            used, pick, rank = (int(i) for i in np.unravel_index(place, last.shape))
            if not np.isfinite(last[used, pick, rank]):
                break
            picks = table.trace(units.start + used, pick, rank)
            spent = float(sum(self.weights[layer, p] for layer, p in enumerate(picks)))
            found.append(Allocation(tuple(self.levels[p] for p in picks), self.loss(picks), spent))
        return found


@dataclass(frozen=True)
class _Table:
    """Losses [units, levels, rank] behind each layer, and which (level, rank) of the layer before each came from."""

    steps: NDArray[np.int64]
    losses: list[Array]
    origins: list[NDArray[np.int64]]

    def trace(self, units: int, pick: int, rank: int) -> list[int]:
        picks = [pick]
        depth = self.losses[0].shape[2]
        for layer in range(len(self.losses) - 1, 0, -1):
            origin = int(self.origins[layer][units, pick, rank])
            units -= int(self.steps[layer, pick])
            pick, rank = divmod(origin, depth)
            picks.append(pick)
        return picks[::-1]


def _units(weights: Array, budget: float) -> tuple[float, NDArray[np.int64]]:
    """The size of a step of the table, and how many each weight takes: exact for multiples of one number."""
    positive = np.unique(weights[weights > 0])
    if len(positive) == 0:
        return max(budget, 1.0), np.zeros(weights.shape, np.int64)
    unit = _common_divisor(positive)
    if budget / unit <= MAX_UNITS:
        return unit, np.rint(weights / unit).astype(np.int64)
    unit = max(budget, float(positive[0])) / MAX_UNITS
    return unit, np.ceil(weights / unit - 1e-9).astype(np.int64)


def _common_divisor(values: Array) -> float:
    """The largest number of which all `values` > 0 are multiples, by Euclid; tiny where there is none."""
    divisor, least = 0.0, 1e-9 * float(values.max())
    for value in values.tolist():
        while value > least:
            divisor, value = value, divisor % value
            if divisor - value < least:  # a remainder that is only rounding
                value = 0.0
    return divisor
