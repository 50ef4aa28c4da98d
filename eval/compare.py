"""From the files of one or several runs to a table of schedules with differences from `full`, errors and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import statistics
from eval.comparison import BASELINE, Change, Comparison, Measured, Row, Shape, averaged, share
from eval.results import ResultsError, ScheduleEntry, TaskEntry
from eval.scores import ScheduleScores, Scores, TaskScores, load
from eval.statistics import Difference, Estimate, Noise
from eval.verdicts import verdict


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare every schedule in these runs with `full`. Raises ResultsError where they do not fit together."""
    scores = load(folders)
    full = _baseline(scores)
    others = sorted((s for s in scores.schedules if s is not full), key=lambda s: _place(s.entry, full.entry))
    schedules = [full, *others]
    average = _average(schedules, scores.tasks)
    bits = _bits_per_byte(schedules, scores.tasks)
    tasks = _tasks(schedules, scores.tasks)
    rows = tuple(
        Row(
            label=s.entry.label,
            hint=s.entry.hint,
            plan=s.entry.plan,
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
        model=full.runs[0].manifest.model,
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


def _place(entry: ScheduleEntry, full: ScheduleEntry) -> tuple[Any, ...]:
    """Where a schedule stands behind `full`."""
    plan = entry.plan
    under = (False, 0.0, "") if plan is None or plan == full.plan else (True, -plan.share, plan.name)
    return (*under, -entry.mean_na, entry.label)


def _baseline(scores: Scores) -> ScheduleScores:
    """`full` on the whole model; where there are results of one pruned model alone, `full` on that."""
    found = [s for s in scores.schedules if BASELINE in (s.entry.label, s.entry.hint)]
    for schedule in found:
        if schedule.entry.plan is None:
            return schedule
    if found and all(s.entry.plan == found[0].entry.plan for s in scores.schedules):
        return found[0]
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
    front = pareto(_costs(schedules), [e.value for e in estimates])
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
    front = pareto(_costs(schedules), [-m.estimate.value for m in measured])
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


def _costs(schedules: Sequence[ScheduleScores]) -> list[tuple[float, ...]]:
    """Experts per token, and share of the experts' memory."""
    return [(s.entry.mean_na, share(s.entry.plan)) for s in schedules]


def pareto(costs: Sequence[tuple[float, ...]], values: Sequence[float]) -> list[bool]:
    """For each point, whether no other has at most its costs and at least its value, one of them strictly."""
    points = list(zip(costs, values, strict=True))
    return [
        not any(
            v >= value and all(a <= b for a, b in zip(c, cost, strict=True)) and (c, v) != (cost, value)
            for c, v in points
        )
        for cost, value in points
    ]
