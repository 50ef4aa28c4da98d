"""Schedules whose scores follow a known law: every layer loses something by each missing expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.search.measurements import Measurements, PlainShape

LAYERS, TOP_K, FULL_SCORE = 8, 6, 66.0
SHAPE = PlainShape(LAYERS, TOP_K)


def losses(ascending: bool = False) -> NDArray[np.float64]:
    """Points lost by each layer without its k-th expert: [L, top_k]. Early layers, or late ones, matter more."""
    by_layer = np.linspace(1.5, 0.1, LAYERS)
    by_rank = 0.6 ** np.arange(TOP_K)
    return np.outer(by_layer[::-1] if ascending else by_layer, by_rank)


def truth(tables: NDArray[np.int64], ascending: bool = False) -> NDArray[np.float64]:
    """Scores without noise: [N]."""
    missing = np.arange(TOP_K) >= tables[:, :, None]
    return np.asarray(FULL_SCORE - (missing * losses(ascending)).sum((1, 2)))


def measure(
    tables: NDArray[np.int64], rules: Sequence[SkipSchedule] = (), noise: float = 0.1, ascending: bool = False
) -> Measurements:
    rules = tuple(rules) or tuple(SkipSchedule(layers=tuple(table.tolist())) for table in tables)
    scores = truth(tables, ascending) + noise * np.random.default_rng(1).normal(size=len(tables))
    return Measurements(SHAPE, tuple(rules), tables, scores, "score")


def grid() -> tuple[list[SkipSchedule], NDArray[np.int64]]:
    """The (b, h, e, p) of the paper's kind on this model, repeats included."""
    rules = [
        SkipSchedule(schedule=(b, h, e, p)) for b in (2, 4, 6) for h in (2, 4, 6) for e in (2, 4, 6) for p in (1, 4, 8)
    ]
    return rules, np.array([rule.expand(SHAPE).na for rule in rules], np.int64)
