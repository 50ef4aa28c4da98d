"""What a surrogate is: fitted to measured schedules, it predicts the scores of others with an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Tables = NDArray[np.int64]
"""Routed experts of each MoE layer, one row per schedule: int64 [N, L]."""
Values = NDArray[np.float64]

LEVEL: Final = 0.95
"""Share of new measurements that an interval is to hold."""
MIN_ROWS: Final = 8
"""Fewer measured schedules are not fitted."""


@dataclass(frozen=True)
class Prediction:
    """Expected scores, and the intervals in which LEVEL of new measurements fall; float64 [M] each.

    The intervals hold a measurement's own noise, not only what the surrogate does not know.
    """

    mean: Values
    low: Values
    high: Values


class Fitted(Protocol):
    """A surrogate after its fit."""

    def predict(self, tables: Tables) -> Prediction: ...
    def mean(self, tables: Tables) -> Values:
        """The expected scores alone, which cost less."""
        ...


class Surrogate(Protocol):
    """A way to predict scores; larger is not better or worse to it."""

    @property
    def name(self) -> str: ...
    def fit(self, tables: Tables, scores: Values) -> Fitted:
        """Everything that is chosen is chosen on these rows alone. Raises ValueError for fewer than MIN_ROWS."""
        ...


def check_rows(tables: Tables, scores: Values) -> None:
    """Raise ValueError unless these rows can be fitted."""
    if len(tables) != len(scores):
        raise ValueError(f"scores: {len(scores)} for {len(tables)} schedules")
    if len(scores) < MIN_ROWS:
        raise ValueError(f"measurements: got {len(scores)}, allowed: at least {MIN_ROWS}")
    if np.ptp(scores) == 0:
        raise ValueError(f"measurements: all {len(scores)} scores are {scores[0]:g}; nothing can be learned from them")


def half_width(errors: Values) -> float:
    """Half the width of an interval for a new error, from the errors of rows that were left out, [N].

    With enough rows the order statistic of conformal prediction, which presumes no distribution; else Student's t.
    """
    count = len(errors)
    rank = int(np.ceil((count + 1) * LEVEL))
    if rank <= count:
        return float(np.sort(np.abs(errors))[rank - 1])
    return float(np.sqrt((errors**2).mean()) * stats.t.ppf((1 + LEVEL) / 2, count - 1))
