"""Schedules to choose from: every (b, h, e, p), and per-layer tables reached from them one exchange at a time. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.schedule import ModelShape, SkipSchedule, interpolate_bhep
from sglang_moe_opt.schedule_limits import LayerBase
from sglang_moe_opt.search.surrogate import Fitted, Tables, Values

_MAX_MOVES: Final = 2000  # accepted exchanges of one climb
_TOLERANCE: Final = 1e-9


def within(mean_na: Values, budget: float) -> NDArray[np.bool_]:
    """Which schedules keep to the budget."""
    return np.asarray(mean_na <= budget + _TOLERANCE)


def bhep_grid(
    shape: ModelShape, lowest: int, highest: int, layer_base: LayerBase = "moe"
) -> tuple[list[SkipSchedule], Tables]:
    """Every (b, h, e, p) with b, h, e in lowest..highest, and its table; of equal tables the first one only."""
    count = len(shape.moe_layer_ids) if layer_base == "moe" else shape.num_layers
    kept = np.arange(count) if layer_base == "moe" else np.array(shape.moe_layer_ids)
    values = range(lowest, highest + 1)
    found: dict[bytes, tuple[tuple[int, int, int, int], NDArray[np.int64]]] = {}
    for b, h, e, p in product(values, values, values, range(1, count + 1)):
        table = np.minimum(np.array(interpolate_bhep(b, h, e, p, count), np.int64)[kept], shape.top_k)
        found.setdefault(table.tobytes(), ((b, h, e, p), table))
    rules = [SkipSchedule(schedule=bhep, layer_base=layer_base) for bhep, _ in found.values()]
    return rules, np.array([table for _, table in found.values()])


def climb(fitted: Fitted, start: NDArray[np.int64], budget: float, lowest: int, highest: int, sign: float) -> Tables:
    """The table with the best lower end of its interval that steps from `start` reach: int64 [L].

    The lower end (the upper one of losses), because free tables go where nothing was measured: what a prediction
    promises there is not taken for granted.

    A step gives one layer an expert, or takes one from another layer for it; the best step is made until none helps.
    Every layer stays within lowest..highest and the sum within the budget of mean na.
    """

    def worst(tables: Tables) -> Values:
        found = fitted.predict(tables)
        return np.minimum(sign * found.low, sign * found.high)

    table = start.copy()
    value = float(worst(table[None])[0])
    for _ in range(_MAX_MOVES):
        steps = np.array(list(_steps(table, budget, lowest, highest)))
        if not len(steps):
            break
        values = worst(steps)
        best = int(values.argmax())
        if values[best] <= value + _TOLERANCE:
            break
        table, value = steps[best], float(values[best])
    return table


def _steps(table: NDArray[np.int64], budget: float, lowest: int, highest: int) -> Iterator[NDArray[np.int64]]:
    room = table.sum() + 1 <= budget * len(table) + _TOLERANCE
    for up in np.flatnonzero(table < highest):
        raised = table.copy()
        raised[up] += 1
        if room:
            yield raised
            continue
        for down in np.flatnonzero(table > lowest):
            if down != up:
                exchanged = raised.copy()
                exchanged[down] -= 1
                yield exchanged


def front(mean_na: Values, values: Values) -> NDArray[np.int64]:
    """Indices of the Pareto front, cheapest first: each is better than everything that costs no more."""
    order = np.lexsort((-values, mean_na))
    best = np.maximum.accumulate(values[order])
    better = np.append(True, best[1:] > best[:-1] + _TOLERANCE)
    return np.asarray(order[better])
