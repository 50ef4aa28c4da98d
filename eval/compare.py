"""From the files of one or several runs to a table of schedules with differences from `full`, errors and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval import statistics
from eval.results import ResultsError, TaskEntry
from eval.scores import Run, ScheduleScores, Scores, TaskScores, load
from eval.statistics import Difference, Estimate, Noise
from eval.verdicts import verdict

Shape = Literal["uniform", "ascending", "descending", "mixed", "dynamic"]
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
        on_front: no other schedule does better with as few experts.
    """

    estimate: Estimate
    runs: tuple[float, ...]
    change: Change | None = None
    left: float | None = None
    on_front: bool = False


@dataclass(frozen=True)
class Row:
    """One schedule. `average` is None without benchmarks, `bits_per_byte` without texts."""

    label: str
    hint: Any
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


@dataclass(frozen=True)
class Comparison:
    """All schedules of one model, `full` first, then by falling mean na.

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

    def fewest_within(self, measure: Literal["average", "bits_per_byte"], margin: float) -> Row | None:
        """The fewest experts whose loss is below the margin with 95 % confidence; None if only `full` has that."""
        fits = [
            row
            for row in self.rows[1:]
            if (m := getattr(row, measure))
            and m.change.difference.largest_loss < margin
            and row.mean_na < self.baseline.mean_na
        ]
        return min(fits, key=lambda row: row.mean_na, default=None)


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare every schedule in these runs with `full`. Raises ResultsError where they do not fit together."""
    scores = load(folders)
    full = _baseline(scores)
    others = sorted((s for s in scores.schedules if s is not full), key=lambda s: (-s.entry.mean_na, s.entry.label))
    schedules = [full, *others]
    average = _average(schedules, scores.tasks)
    bits = _bits_per_byte(schedules, scores.tasks)
    tasks = _tasks(schedules, scores.tasks)
    rows = tuple(
        Row(
            label=s.entry.label,
            hint=s.entry.hint,
            mean_na=s.entry.mean_na,
            layers=tuple(s.entry.layers),
            shape="dynamic" if s.entry.dynamic else shape_of(s.entry.layers),
            is_baseline=s is full,
            runs=len(s.runs),
            seconds=s.seconds,
            average=average[i],
            bits_per_byte=bits[i],
            tasks=tasks[i],
            metrics={name: task.metrics for name, task in s.tasks.items()},
            noise=_noise(s, scores.tasks),
        )
        for i, s in enumerate(schedules)
    )
    return Comparison(
        model=scores.runs[0].manifest.model,
        fingerprint=scores.runs[0].manifest.model_fingerprint,
        runs=scores.runs,
        tasks=scores.tasks,
        rows=rows,
        beats_chance={
            t.name: statistics.beats_chance(full.tasks[t.name].runs[0], t.chance)
            for t in scores.tasks
            if t.chance is not None
        },
        incomplete=scores.incomplete,
        headline_comparisons=len(others),
        task_comparisons=len(others) * len(scores.tasks),
    )


def shape_of(layers: Sequence[int]) -> Shape:
    """How the experts per layer run with depth."""
    steps = np.diff(layers)
    if not steps.any():
        return "uniform"
    if (steps >= 0).all():
        return "ascending"
    return "descending" if (steps <= 0).all() else "mixed"


def averaged(tasks: Sequence[TaskEntry]) -> tuple[TaskEntry, ...]:
    """The tasks that the paper's average is taken over."""
    return tuple(task for task in tasks if task.in_average and task.metric != "bits_per_byte")


def _baseline(scores: Scores) -> ScheduleScores:
    for schedule in scores.schedules:
        if BASELINE in (schedule.entry.label, schedule.entry.hint):
            return schedule
    folders = ", ".join(str(run.folder) for run in scores.runs)
    raise ResultsError(f"{folders}: no complete results of {BASELINE!r}, which every schedule is compared with")


def _average(schedules: Sequence[ScheduleScores], tasks: Sequence[TaskEntry]) -> list[Measured | None]:
    names = [task.name for task in averaged(tasks)]
    if not names:
        return [None] * len(schedules)
    items = [[s.tasks[name].items for name in names] for s in schedules]
    chances = [t.chance for t in averaged(tasks)]
    chance = 100 * float(np.mean([c for c in chances if c is not None])) if None not in chances else None
    estimates = [statistics.average_score(task_items) for task_items in items]
    changes = _changes([statistics.paired_points(i, items[0]) for i in items[1:]])
    front = pareto([s.entry.mean_na for s in schedules], [e.value for e in estimates])
    return [
        Measured(
            estimate=estimate,
            runs=tuple(100 * float(r) for r in np.mean([s.tasks[name].runs.mean(axis=1) for name in names], axis=0)),
            change=change,
            left=_left(estimate, estimates[0], chance),
            on_front=on_front,
        )
        for s, estimate, change, on_front in zip(schedules, estimates, [None, *changes], front, strict=True)
    ]


def _bits_per_byte(schedules: Sequence[ScheduleScores], tasks: Sequence[TaskEntry]) -> list[Measured | None]:
    """All texts together."""
    names = [task.name for task in tasks if task.metric == "bits_per_byte"]
    if not names:
        return [None] * len(schedules)
    pooled = [_pooled([s.tasks[name] for name in names]) for s in schedules]
    changes = _changes([statistics.paired_change(p.items, pooled[0].items) for p in pooled[1:]])
    measured = [_measured_bits(p, change) for p, change in zip(pooled, [None, *changes], strict=True)]
    front = pareto([s.entry.mean_na for s in schedules], [-m.estimate.value for m in measured])
    return [
        Measured(m.estimate, m.runs, m.change, on_front=on_front) for m, on_front in zip(measured, front, strict=True)
    ]


def _tasks(schedules: Sequence[ScheduleScores], tasks: Sequence[TaskEntry]) -> list[dict[str, Measured]]:
    """Each task on its own; corrected for all schedules and tasks together."""
    full = schedules[0]
    pairs = [(s, task) for s in schedules[1:] for task in tasks]
    differences = [
        statistics.paired_change(s.tasks[t.name].items, full.tasks[t.name].items)
        if t.metric == "bits_per_byte"
        else statistics.paired_points([s.tasks[t.name].items], [full.tasks[t.name].items])
        for s, t in pairs
    ]
    changes: Mapping[tuple[str, str], Change] = {
        (s.entry.label, t.name): change for (s, t), change in zip(pairs, _changes(differences), strict=True)
    }
    return [
        {
            t.name: _measured_bits(s.tasks[t.name], changes.get((s.entry.label, t.name)))
            if t.metric == "bits_per_byte"
            else _measured_score(s.tasks[t.name], full.tasks[t.name], t, changes.get((s.entry.label, t.name)))
            for t in tasks
        }
        for s in schedules
    ]


def _changes(differences: Sequence[Difference]) -> list[Change]:
    adjusted = statistics.holm([d.p for d in differences])
    return [Change(d, p, verdict(d, p)) for d, p in zip(differences, adjusted, strict=True)]


def _measured_score(task: TaskScores, full: TaskScores, entry: TaskEntry, change: Change | None) -> Measured:
    estimate = statistics.score(task.items)
    chance = None if entry.chance is None else 100 * entry.chance
    left = _left(estimate, statistics.score(full.items), chance)
    return Measured(estimate, tuple(100 * float(r) for r in task.runs.mean(axis=1)), change, left)


def _measured_bits(task: TaskScores, change: Change | None) -> Measured:
    if task.n_bytes is None:
        raise ResultsError("bits per byte need the bytes of each text")
    runs = tuple(float(r) / statistics.LN2 / float(task.n_bytes.sum()) for r in task.runs.sum(axis=1))
    return Measured(statistics.bits_per_byte(task.items, task.n_bytes), runs, change)


def _pooled(tasks: Sequence[TaskScores]) -> TaskScores:
    n_bytes = [task.n_bytes for task in tasks if task.n_bytes is not None]
    return TaskScores(np.concatenate([task.runs for task in tasks], axis=1), np.concatenate(n_bytes), {})


def _left(estimate: Estimate, full: Estimate, chance: float | None) -> float | None:
    return None if chance is None else statistics.margin_over_chance(estimate.value, full.value, chance)


def _noise(schedule: ScheduleScores, tasks: Sequence[TaskEntry]) -> Noise | None:
    repeats = [schedule.tasks[task.name].runs for task in averaged(tasks)]
    return statistics.noise(repeats) if repeats and len(schedule.runs) > 1 else None


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """For each point, whether no other has at most its cost and at least its value, one of them strictly."""
    points = list(zip(costs, values, strict=True))
    return [not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points) for cost, value in points]
