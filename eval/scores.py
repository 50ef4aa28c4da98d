"""Scores of one or several runs as arrays whose items line up, or a refusal that says what does not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.results import Item, Manifest, ResultsError, ResultsFolder, ScheduleEntry, TaskEntry
from eval.statistics import Array

CHOICE_METRICS = ("acc", "acc_norm", "exact_match")
Keys = list[tuple[int, int | None, int | None]]
"""What makes an item the same item: id, target, bytes."""


@dataclass(frozen=True)
class Run:
    """One results folder and what it says about itself."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class TaskScores:
    """One task under one schedule.

    Attributes:
        runs: per run and item the score of the task's metric (0 or 1), or the nats of the text; shape [runs, items].
        n_bytes: bytes of the texts, shape [items]; None for other tasks.
        metrics: mean in percent of every metric that the items have, over items and runs.
    """

    runs: Array
    n_bytes: Array | None
    metrics: dict[str, float]

    @property
    def items(self) -> Array:
        """Mean over runs, shape [items]."""
        return np.asarray(self.runs.mean(axis=0))


@dataclass(frozen=True)
class ScheduleScores:
    """A schedule's tasks by name; `runs` are the folders that it ran in."""

    entry: ScheduleEntry
    runs: tuple[Run, ...]
    tasks: dict[str, TaskScores]
    seconds: float


@dataclass(frozen=True)
class Scores:
    """Everything that several runs of one model scored; `incomplete` says which schedules were left out, and why."""

    runs: tuple[Run, ...]
    tasks: tuple[TaskEntry, ...]
    schedules: tuple[ScheduleScores, ...]
    incomplete: tuple[str, ...]


def load(folders: Sequence[Path]) -> Scores:
    """Read runs that belong together; a schedule that several of them ran counts as repeated.

    Raises ResultsError where a folder cannot be read, and where models, tasks, schedules or items differ.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ResultsError("the same folder was given twice; repeats are separate runs")
    runs = tuple(Run(folder, ResultsFolder(folder).read_manifest()) for folder in folders)
    _check_runs(runs)
    tasks = tuple(runs[0].manifest.tasks)
    entries: dict[str, ScheduleEntry] = {}
    complete: dict[str, list[Run]] = {}
    incomplete: list[str] = []
    for run in runs:
        for entry in run.manifest.schedules:
            _check_entry(entries.setdefault(entry.label, entry), entry, run)
            missing = [t.name for t in tasks if not ResultsFolder(run.folder).has_items(entry.label, t.name)]
            if missing:
                incomplete.append(f"{entry.label}: {run.folder.name} has no complete {', '.join(missing)}")
            else:
                complete.setdefault(entry.label, []).append(run)
    known: dict[str, Keys] = {}
    schedules = tuple(
        ScheduleScores(
            entry=entries[label],
            runs=tuple(its_runs),
            tasks={task.name: _task_scores(its_runs, label, task, known) for task in tasks},
            seconds=sum(r.manifest.seconds.get(f"{label}/{t.name}", 0.0) for r in its_runs for t in tasks),
        )
        for label, its_runs in complete.items()
    )
    return Scores(runs, tasks, schedules, tuple(incomplete))


def _check_runs(runs: Sequence[Run]) -> None:
    first = runs[0]
    if not first.manifest.tasks:
        raise ResultsError(f"{first.folder}: no task has run yet")
    wanted = {task.name: task for task in first.manifest.tasks}
    for run in runs[1:]:
        if run.manifest.model_fingerprint != first.manifest.model_fingerprint:
            raise ResultsError(
                f"{run.folder} and {first.folder} ran different models (fingerprints "
                f"{run.manifest.model_fingerprint} and {first.manifest.model_fingerprint}); report them apart"
            )
        found = {task.name: task for task in run.manifest.tasks}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ResultsError(
                    f"{run.folder} and {first.folder} differ in task {name}; only equal tasks are paired"
                )


def _check_entry(known: ScheduleEntry, entry: ScheduleEntry, run: Run) -> None:
    if known != entry:
        raise ResultsError(f"{run.folder}: schedule {entry.label!r} is not what it is in the other runs; rename one")


def _task_scores(runs: Sequence[Run], label: str, task: TaskEntry, known: dict[str, Keys]) -> TaskScores:
    """Read a task in every run; `known` collects the items of each task, with which all others must agree."""
    by_run = [_read(run, label, task, known) for run in runs]
    metrics = {name: [getattr(item, name) for items in by_run for item in items] for name in CHOICE_METRICS}
    file = ResultsFolder(runs[0].folder).items_file(label, task.name)
    return TaskScores(
        runs=np.array([[_score(item, task, file) for item in items] for items in by_run]),
        n_bytes=_bytes(by_run[0], file) if task.metric == "bits_per_byte" else None,
        metrics={name: 100 * float(np.mean(values)) for name, values in metrics.items() if None not in values},
    )


def _read(run: Run, label: str, task: TaskEntry, known: dict[str, Keys]) -> list[Item]:
    folder = ResultsFolder(run.folder)
    file = folder.items_file(label, task.name)
    items = sorted(folder.read_items(label, task.name), key=lambda item: item.id)
    if not items or len(items) != task.items:
        raise ResultsError(f"{file}: {len(items)} items where the manifest says {task.items}")
    keys = [(item.id, item.target, item.n_bytes) for item in items]
    if len({item.id for item in items}) < len(items):
        raise ResultsError(f"{file}: an item occurs twice")
    if keys != known.setdefault(task.name, keys):
        first = next(a for a, b in zip(keys, known[task.name], strict=True) if a != b)
        raise ResultsError(
            f"{file}: item {first[0]} is not the item that another schedule or run had; cannot pair them"
        )
    return items


def _score(item: Item, task: TaskEntry, file: Path) -> float:
    value = item.nats if task.metric == "bits_per_byte" else getattr(item, task.metric)
    if value is None or not np.isfinite(value):
        raise ResultsError(f"{file}: item {item.id} has no {'nats' if task.metric == 'bits_per_byte' else task.metric}")
    return float(value)


def _bytes(items: Sequence[Item], file: Path) -> Array:
    for item in items:
        if not item.n_bytes:
            raise ResultsError(f"{file}: item {item.id} has no n_bytes")
    return np.array([item.n_bytes for item in items], dtype=np.float64)
