"""From measured schedules to the best one under a budget of experts: cross-validation, predictions, Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.schedule_limits import LayerBase
from sglang_moe_opt.search.gaussian_process import default_surrogate
from sglang_moe_opt.search.measurements import Measurements
from sglang_moe_opt.search.proposals import bhep_grid, climb, front, within
from sglang_moe_opt.search.rivals import folds as row_folds
from sglang_moe_opt.search.surrogate import LEVEL, Fitted, Surrogate, Tables, Values

FOLDS: Final = 10


@dataclass(frozen=True)
class Scored:
    """A schedule with its predicted score.

    Attributes:
        rule: (b, h, e, p) where it is one, else na per layer.
        layers: na of each MoE layer.
        predicted, low, high: the expected score, and where LEVEL of new measurements of it fall.
        measured: mean of its scores in the file; None where it was not measured.
    """

    rule: SkipSchedule
    layers: tuple[int, ...]
    mean_na: float
    predicted: float
    low: float
    high: float
    measured: float | None

    @property
    def label(self) -> str:
        if self.rule.schedule is not None:
            return ",".join(map(str, self.rule.schedule))
        return "-".join(map(str, self.layers))

    def to_object(self) -> dict[str, Any]:
        return {
            **self.rule.to_object(),
            "layers": list(self.layers),
            "mean_na": round(self.mean_na, 4),
            "predicted": round(self.predicted, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
            "measured": None if self.measured is None else round(self.measured, 4),
        }


@dataclass(frozen=True)
class CrossValidation:
    """Errors on rows that were left out, in the score's unit; `coverage`: share of them inside their intervals."""

    folds: int
    mean_absolute_error: float
    root_mean_square_error: float
    largest_error: float
    coverage: float


@dataclass(frozen=True)
class MeasuredSearch:
    """What the measurements say. Schedules of one budget are best first.

    Attributes:
        best_measured: measured schedules within the budget by their measured score.
        best_measured_predicted: the same by their predicted score, in which chance weighs less.
        best_schedules: of every (b, h, e, p) within the range of na that was measured.
        best_layers: of tables of any shape, the best lower end of an interval that was found.
        front: (b, h, e, p) schedules that no cheaper one beats, by predicted score.
        asked: the schedules of `predict`.
    """

    measurements: Measurements
    surrogate: str
    cross_validation: CrossValidation
    budget: float
    searched: int
    best_measured: tuple[Scored, ...]
    best_measured_predicted: tuple[Scored, ...]
    best_schedules: tuple[Scored, ...]
    best_layers: Scored
    front: tuple[Scored, ...]
    asked: tuple[Scored, ...]

    def to_object(self) -> dict[str, Any]:
        """JSON-ready."""
        data, validation = self.measurements, self.cross_validation
        return {
            "column": data.column,
            "lower_is_better": data.lower_is_better,
            "rows": len(data),
            "distinct_schedules": int(data.groups.max()) + 1,
            "repeat_deviation": None if data.repeat_deviation is None else round(data.repeat_deviation, 4),
            "surrogate": self.surrogate,
            "interval_level": LEVEL,
            "cross_validation": {
                "folds": validation.folds,
                "mean_absolute_error": round(validation.mean_absolute_error, 4),
                "root_mean_square_error": round(validation.root_mean_square_error, 4),
                "largest_error": round(validation.largest_error, 4),
                "coverage": round(validation.coverage, 4),
            },
            "mean_na_budget": self.budget,
            "schedules_searched": self.searched,
            "best_measured": [one.to_object() for one in self.best_measured],
            "best_measured_predicted": [one.to_object() for one in self.best_measured_predicted],
            "best_schedules": [one.to_object() for one in self.best_schedules],
            "best_layers": self.best_layers.to_object(),
            "front": [one.to_object() for one in self.front],
            "predicted": [one.to_object() for one in self.asked],
        }


def search_measurements(
    data: Measurements,
    *,
    mean_na: float | None = None,
    top: int = 5,
    predict: Sequence[SkipSchedule] = (),
    layer_base: LayerBase = "moe",
    folds: int = FOLDS,
) -> MeasuredSearch:
    """Fit the measurements and search schedules.

    Args:
        data: at least 8 measured schedules.
        mean_na: the budget; default: the highest that was measured.
        top: how many schedules of each list.
        predict: schedules whose score is asked for.
        layer_base: what p of the searched schedules counts.
        folds: of the cross-validation, each of them one fit.

    Raises:
        ValueError: too few measurements, a budget below every schedule that can be searched, a schedule that the model
            does not allow.
    """
    lowest, highest = int(data.tables.min()), int(data.tables.max())
    budget = float(data.mean_na.max()) if mean_na is None else mean_na
    if not budget >= lowest:
        raise FieldError("mean_na", budget, f"a number from {lowest}, the fewest that was measured in any layer")
    asked = [(rule, rule.expand(data.shape)) for rule in predict]
    for rule, table in asked:
        if not table.is_static:
            raise FieldError("predict", rule.rule, "na, schedule or layers: what rules by weight keep is not known")
    surrogate = default_surrogate(data.tables.shape[1], data.shape.top_k)
    fitted = surrogate.fit(data.tables, data.scores)
    scorer = _Scorer(data, fitted)

    rules, tables = bhep_grid(data.shape, lowest, highest, layer_base)
    means = tables.mean(1)
    values = data.sign * fitted.mean(tables)
    ranked = _best_first(values, within(means, budget), top)
    start, chosen = tables[ranked[0]], front(means, values)
    return MeasuredSearch(
        measurements=data,
        surrogate=surrogate.name,
        cross_validation=cross_validate(data, surrogate, folds),
        budget=budget,
        searched=len(tables),
        best_measured=scorer.rows(_distinct(data, data.scores, budget, top)),
        best_measured_predicted=scorer.rows(_distinct(data, fitted.mean(data.tables), budget, top)),
        best_schedules=scorer.of([rules[index] for index in ranked], tables[ranked]),
        best_layers=scorer.table(climb(fitted, start, budget, lowest, highest, data.sign)),
        front=scorer.of([rules[index] for index in chosen], tables[chosen]),
        asked=scorer.of(list(predict), np.array([table.na for _, table in asked], np.int64)) if asked else (),
    )


def cross_validate(data: Measurements, surrogate: Surrogate, count: int = FOLDS) -> CrossValidation:
    """Predict each schedule from others alone: all rows of one table are left out together."""
    errors, hits = [], []
    distinct = int(data.groups.max()) + 1
    used = 0
    for _, left in row_folds(distinct, count):
        out = np.isin(data.groups, left)
        prediction = surrogate.fit(data.tables[~out], data.scores[~out]).predict(data.tables[out])
        errors.append(prediction.mean - data.scores[out])
        hits.append((prediction.low <= data.scores[out]) & (data.scores[out] <= prediction.high))
        used += 1
    all_errors = np.abs(np.concatenate(errors))
    return CrossValidation(
        folds=used,
        mean_absolute_error=float(all_errors.mean()),
        root_mean_square_error=float(np.sqrt((all_errors**2).mean())),
        largest_error=float(all_errors.max()),
        coverage=float(np.concatenate(hits).mean()),
    )


@dataclass(frozen=True)
class _Scorer:
    data: Measurements
    fitted: Fitted

    def of(self, rules: Sequence[SkipSchedule], tables: Tables) -> tuple[Scored, ...]:
        found = self.fitted.predict(tables)
        rows = zip(rules, tables, found.mean, found.low, found.high, strict=True)
        return tuple(self._scored(rule, table, float(m), float(low), float(high)) for rule, table, m, low, high in rows)

    def rows(self, rows: Sequence[int]) -> tuple[Scored, ...]:
        if not len(rows):
            return ()
        return self.of([self.data.rules[row] for row in rows], self.data.tables[list(rows)])

    def table(self, table: NDArray[np.int64]) -> Scored:
        return self.of([SkipSchedule(layers=tuple(table.tolist()))], table[None])[0]

    def _scored(self, rule: SkipSchedule, table: NDArray[np.int64], mean: float, low: float, high: float) -> Scored:
        repeats = self.data.repeats(table)
        measured = float(repeats.mean()) if len(repeats) else None
        return Scored(rule, tuple(table.tolist()), float(table.mean()), mean, low, high, measured)


def _best_first(values: Values, allowed: NDArray[np.bool_], top: int) -> NDArray[np.int64]:
    indices = np.flatnonzero(allowed)
    return indices[np.argsort(-values[indices], kind="stable")[:top]]


def _distinct(data: Measurements, scores: Values, budget: float, top: int) -> list[int]:
    """First rows of the best distinct tables within the budget, by the mean of their repeats."""
    means = np.bincount(data.groups, scores) / np.bincount(data.groups)
    first = np.unique(data.groups, return_index=True)[1]
    inside = within(data.mean_na[first], budget)
    return [int(first[group]) for group in _best_first(data.sign * means, inside, top)]
