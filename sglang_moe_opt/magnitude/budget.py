"""From a budget of experts to a schedule: thresholds on a sample, corrected by what the engine realises. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from sglang_moe_opt.fields import FieldError, is_number
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.magnitude.thresholds import RULES, Rule, layer_thresholds, one_threshold
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.schedule_limits import Rescale

FIT: Final = "fit"
"""Value of rescale: each layer's factor is fitted to the sample."""
TOLERANCE: Final = 0.01
"""Experts that the realised mean may be off without a correction, unless a search says otherwise."""


@dataclass(frozen=True)
class Budget:
    """What a schedule may keep, and by which rule.

    Attributes:
        rule: min_ratio, min_weight or top_p.
        mean_na: mean number of kept experts over tokens and layers.
        min_na: experts that are always kept.
        scope: "one" threshold for all layers, or "layers": each keeps the same number with a threshold of its own.
        layer_na: mean number of kept experts of each layer, in place of `mean_na` and `scope`.
        rescale: as in a hint, or FIT.

    Raises:
        FieldError: a value that is not allowed.
    """

    rule: Rule
    mean_na: float
    min_na: int = 1
    scope: Literal["one", "layers"] = "one"
    layer_na: tuple[float, ...] | None = None
    rescale: Rescale | Literal["fit"] = "router"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise FieldError("--rule", self.rule, ", ".join(RULES))
        if not is_number(self.mean_na) or self.mean_na <= 0:
            raise FieldError("--mean-na", self.mean_na, "a number above 0")
        if self.rescale != FIT:
            self.schedule(1.0)

    @classmethod
    def of_layers(cls, rule: Rule, layer_na: tuple[float, ...], **options: Any) -> Budget:
        """A budget for each layer."""
        return cls(rule, float(np.mean(layer_na)), scope="layers", layer_na=layer_na, **options)

    def thresholds(self, weights: RouterWeights, offset: float = 0.0) -> float | tuple[float, ...]:
        """The rule's value for which the sample keeps the budget plus `offset` experts. Raises FieldError."""
        if self.layer_na is None and self.scope == "one":
            return one_threshold(weights, self.rule, self.mean_na + offset, self.min_na)
        each = self.layer_na or (self.mean_na,) * len(weights.layer_ids)
        most = float(weights.top_k)
        # A layer that is to keep the least, or everything, stays there however the others are moved.
        asked = [min(max(na + offset, min(na, self.min_na)), max(na, most)) for na in each]
        return layer_thresholds(weights, self.rule, asked, self.min_na)

    def schedule(self, threshold: float | tuple[float, ...], factors: tuple[float, ...] | None = None) -> SkipSchedule:
        """The schedule with these values; `factors` where rescale is FIT."""
        rescale: Any = factors or ("router" if self.rescale == FIT else self.rescale)
        return SkipSchedule(**{self.rule: threshold}, min_na=self.min_na, rescale=rescale)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Round:
    """One attempt: what was asked of the sample, the schedule, and how many experts the engine kept under it."""

    asked: float
    schedule: SkipSchedule
    sample_na: tuple[float, ...]
    realised: float | None = None

    def to_object(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "asked": round(self.asked, 4),
            "schedule": self.schedule.to_object(),
            "sample_mean_na": round(float(np.mean(self.sample_na)), 4),
            "sample_na": [round(value, 4) for value in self.sample_na],
            "realised_mean_na": None if self.realised is None else round(self.realised, 4),
        }


@dataclass(frozen=True)
class Search:
    """How a budget is met.

    Attributes:
        budget: what is wanted.
        weights: of the sample.
        expand: a schedule on the model.
        fit: the factors of a table, for rescale FIT.
        measure: mean number of experts that the engine keeps under a schedule; None leaves the sample's word.
        corrections: how often thresholds are moved by what the engine realised.
        tolerance: experts that the realised mean may be off without a correction.
        report: is told of every round.
    """

    budget: Budget
    weights: RouterWeights
    expand: Callable[[SkipSchedule], LayerTable]
    fit: Callable[[LayerTable], tuple[float, ...]]
    measure: Callable[[SkipSchedule], float] | None = None
    corrections: int = 2
    tolerance: float = TOLERANCE
    report: Callable[[Round], None] = field(default=lambda done: None)

    def run(self) -> list[Round]:
        """All rounds; :func:`best` is the one to use. Raises FieldError where the budget cannot be met."""
        offset, rounds = 0.0, []
        for _ in range(1 + (self.corrections if self.measure else 0)):
            rounds.append(done := self._round(offset))
            self.report(done)
            if done.realised is None or abs(done.realised - self.budget.mean_na) <= self.tolerance:
                break
            offset = self._next_offset(rounds)
        return rounds

    def _round(self, offset: float) -> Round:
        schedule = self.budget.schedule(threshold := self.budget.thresholds(self.weights, offset))
        if self.budget.rescale == FIT:
            schedule = self.budget.schedule(threshold, self.fit(self.expand(schedule)))
        sample = tuple(self.weights.mean_na(self.expand(schedule)).tolist())
        realised = self.measure(schedule) if self.measure else None
        return Round(self.budget.mean_na + offset, schedule, sample, realised)

    def _next_offset(self, rounds: list[Round]) -> float:
        """Where the secant through the last two rounds meets the budget; the first step takes a slope of 1."""
        wanted, (x, y) = self.budget.mean_na, _point(rounds[-1])
        slope = 1.0
        if len(rounds) > 1:
            before, realised = _point(rounds[-2])
            slope = min(max((y - realised) / (x - before), 0.25), 4.0) if x != before else 1.0
        return min(x + (wanted - y) / slope, float(self.weights.top_k)) - wanted


def _point(done: Round) -> tuple[float, float]:
    """Experts asked of the sample, and those that the engine kept."""
    return done.asked, done.asked if done.realised is None else done.realised


def best(rounds: list[Round], mean_na: float) -> Round:
    """The round whose realised mean is nearest to the budget; the only one where nothing was measured."""
    return min(rounds, key=lambda one: abs((one.realised if one.realised is not None else mean_na) - mean_na))
