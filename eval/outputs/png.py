"""PNG plots for documents: the average and bits per byte against mean na or experts kept, and each task by itself."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

from eval.comparison import Comparison, Measure, Shape
from eval.outputs import png_kept
from eval.outputs.points import AXIS, COLORS, FEW, Point, around, front, points, shows_mean_na
from eval.results import TaskEntry
from sglang_moe_opt.pyplot import pyplot

FILES: dict[Measure, str] = {"average": "accuracy_vs_mean_na.png", "bits_per_byte": "bits_per_byte_vs_mean_na.png"}
TASKS_FILE = "per_task.png"
MARKERS: dict[Shape, str] = {"uniform": "o", "ascending": "^", "descending": "v", "mixed": "D", "dynamic": "s"}
X_LABEL = "mean na (routed experts per token)"


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Raises NoMatplotlibError."""
    pyplot()  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for measure, name in FILES.items():
        if found := points(comparison, measure):
            _measure(comparison, found, measure, folder / name)
            written.append(folder / name)
    if shows_mean_na(comparison):
        _tasks(comparison, folder / TASKS_FILE)
        written.append(folder / TASKS_FILE)
    return [*written, *png_kept.write(comparison, folder)]


def _measure(comparison: Comparison, found: list[Point], measure: Measure, path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.6), dpi=144, layout="constrained")
    if measure == "average" and comparison.noise and comparison.noise.band:
        band = comparison.noise.band
        axes.axhspan(found[0].y - band, found[0].y + band, color="0.9", lw=0, label="repeats fall here")
    axes.axhline(found[0].y, color="0.6", lw=0.8, ls=":")
    best = front(found)
    axes.plot([p.x for p in best], [p.y for p in best], color="0.5", lw=1, ls="--", label="Pareto front", zorder=1)
    for point in found:
        if point.interval and point.shows_interval:
            axes.vlines(
                point.x, point.interval.low, point.interval.high, color=COLORS[point.row.shape], lw=1.2, alpha=0.5
            )
    _scatter(axes, [(p.row.shape, p.x, p.y) for p in found])
    axes.scatter(found[0].x, found[0].y, s=130, facecolors="none", edgecolors="black", lw=1, label=found[0].row.label)
    axes.set(xlabel=X_LABEL, ylabel=AXIS[measure])
    axes.set_title(
        f"{comparison.model}; bars: 95 % interval of the paired difference from {comparison.baseline.label}", fontsize=9
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _tasks(comparison: Comparison, path: Path) -> None:
    plt = pyplot()
    columns = min(4, len(comparison.tasks))
    lines = ceil(len(comparison.tasks) / columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.0 * columns + 0.6, 2.5 * lines + 0.4), dpi=120, layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(comparison.tasks) :]:
        axes.axis("off")
    for axes, task in zip(grid.flat, comparison.tasks, strict=False):
        _task(axes, comparison, task)
    figure.supxlabel(X_LABEL, fontsize=9)
    figure.suptitle(
        f"{comparison.model}: each task (dotted: full; dashed: guessing; bars: 95 % of the paired difference)",
        fontsize=10,
    )
    _save(figure, path)


def _task(axes: Any, comparison: Comparison, task: TaskEntry) -> None:
    full = comparison.baseline.tasks[task.name].estimate
    axes.axhline(full.value, color="0.5", lw=0.8, ls=":")
    if task.chance is not None:
        axes.axhline(100 * task.chance, color="0.5", lw=0.8, ls="--")
    for row in comparison.unpruned if len(comparison.rows) <= FEW else ():
        if interval := around(full.value, row.tasks[task.name]):
            axes.vlines(row.mean_na, interval.low, interval.high, color=COLORS[row.shape], lw=1, alpha=0.5)
    values = [(row.shape, row.mean_na, row.tasks[task.name].estimate.value) for row in comparison.unpruned]
    _scatter(axes, values, size=18)
    unit = "bits/byte" if task.metric == "bits_per_byte" else f"{task.metric}, %"
    axes.set_title(f"{task.name} ({unit}, n={task.items})", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _scatter(axes: Any, values: list[tuple[Shape, float, float]], size: int = 34) -> None:
    for shape in dict.fromkeys(shape for shape, _, _ in values):
        own = [(x, y) for kind, x, y in values if kind == shape]
        axes.scatter(*zip(*own, strict=True), s=size, marker=MARKERS[shape], color=COLORS[shape], label=shape, zorder=2)


def _save(figure: Any, path: Path) -> None:
    plt = pyplot()
    figure.savefig(path)
    plt.close(figure)
