"""What a comparison of schedules with `full` consists of, and what can be read off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eval.results import PlanEntry, TaskEntry
from eval.scores import Run
from eval.statistics import Difference, Estimate, Noise

Shape = Literal["uniform", "ascending", "descending", "mixed", "dynamic"]
Measure = Literal["average", "bits_per_byte"]
SHAPES: tuple[Shape, ...] = ("uniform", "ascending", "descending", "mixed", "dynamic")
BASELINE = "full"


@dataclass(frozen=True)
class Change:
    """A difference from `full` with what it means once all schedules' differences are taken together."""

    difference: Difference
    p_adjusted: float
    verdict: str


@dataclass(frozen=True)
class Measured:
    """One number of one schedule.

    Attributes:
        estimate: a score in percent, or bits per byte; over the runs together.
        runs: the same number in each run.
        change: against `full`; None for `full` itself.
        left: share of full's margin over guessing that is left; None where there is none.
        on_front: no other schedule does better with as few experts per token and in as little memory.
    """

    estimate: Estimate
    runs: tuple[float, ...]
    change: Change | None = None
    left: float | None = None
    on_front: bool = False


@dataclass(frozen=True)
class Row:
    """One schedule. `plan` is None for the whole model, `average` without benchmarks, `bits_per_byte` without texts."""

    label: str
    hint: Any
    plan: PlanEntry | None
    mean_na: float
    layers: tuple[int, ...]
    shape: Shape
    is_baseline: bool
    runs: int
    seconds: float
    average: Measured | None
    bits_per_byte: Measured | None
    tasks: dict[str, Measured]
    metrics: dict[str, dict[str, float]]
    noise: Noise | None

    @property
    def share(self) -> float:
        """Share of the routed experts' weights that is in memory."""
        return share(self.plan)


@dataclass(frozen=True)
class Comparison:
    """All schedules of one model, `full` first, then by falling mean na; behind them plan by plan, by falling memory.

    Attributes:
        beats_chance: for each task with choices, whether `full` is better than guessing there.
        headline_comparisons, task_comparisons: how many differences Holm's correction counts.
    """

    model: str
    fingerprint: str
    runs: tuple[Run, ...]
    tasks: tuple[TaskEntry, ...]
    rows: tuple[Row, ...]
    beats_chance: dict[str, bool]
    incomplete: tuple[str, ...]
    headline_comparisons: int
    task_comparisons: int

    @property
    def baseline(self) -> Row:
        return self.rows[0]

    @property
    def averaged(self) -> tuple[TaskEntry, ...]:
        """The tasks of the average."""
        return averaged(self.tasks)

    @property
    def noise(self) -> Noise | None:
        """The widest noise band of the schedules that ran more than once."""
        return max((row.noise for row in self.rows if row.noise), key=lambda n: n.band, default=None)

    @property
    def has_plans(self) -> bool:
        """Whether any schedule ran under a prune plan."""
        return any(row.plan for row in self.rows)

    @property
    def unpruned(self) -> tuple[Row, ...]:
        """The schedules that differ from the baseline in experts per token alone: on the same weights."""
        return tuple(row for row in self.rows if row.plan == self.baseline.plan)

    def fewest_within(self, measure: Measure, margin: float) -> Row | None:
        """The fewest experts per token whose loss is below the margin with 95 % confidence, on the baseline's weights.

        None if only `full` has that.
        """
        fits = [row for row in self.unpruned if row.mean_na < self.baseline.mean_na]
        return min(_within(fits, measure, margin), key=lambda row: row.mean_na, default=None)

    def smallest_within(self, measure: Measure, margin: float) -> Row | None:
        """The least memory whose loss is below the margin with 95 % confidence; of equal ones that with most experts.

        None if only models as large as `full` have that.
        """
        fits = [row for row in self.rows if row.share < self.baseline.share]
        return min(_within(fits, measure, margin), key=lambda row: (row.share, -row.mean_na), default=None)


def averaged(tasks: Sequence[TaskEntry]) -> tuple[TaskEntry, ...]:
    """The tasks that the paper's average is taken over."""
    return tuple(task for task in tasks if task.in_average and task.metric != "bits_per_byte")


def share(plan: PlanEntry | None) -> float:
    """Share of the routed experts' weights that is in memory."""
    return 1.0 if plan is None else plan.share


def _within(rows: Sequence[Row], measure: Measure, margin: float) -> list[Row]:
    return [row for row in rows if (m := getattr(row, measure)) and m.change.difference.largest_loss < margin]
