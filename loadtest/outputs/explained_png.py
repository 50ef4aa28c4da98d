"""explanation.png: predictions beside measurements, steps under the machine's roofline, what a step is spent on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest.analysis import Analysis
from loadtest.explanation import ExplainedPoint
from loadtest.outputs import looks, panels
from loadtest.outputs.png import draw_panel
from sglang_moe_opt.perfmodel.step import REGIMES
from sglang_moe_opt.pyplot import pyplot

FILE = "explanation.png"
COLUMNS = 2
LABELLED = 6
"""So many points of the first arm at most have their load written beside them."""


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """Nothing where no step could be explained; without ceilings the roofline has no roof, and nothing is predicted."""
    points = analysis.explanation.points
    if not points:
        return []
    plt = pyplot()
    predicted = [(panel, panels.curves(analysis, panel, "closed")) for panel in panels.PREDICTED]
    predicted = [(panel, found) for panel, found in predicted if found]
    first = [point for point in points if point.arm == points[0].arm and point.achieved.shares]
    count = len(predicted) + 1 + bool(first)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    size = (5.4 * columns, 3.9 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, dpi=144, layout="constrained", squeeze=False)
    axes = list(grid.flat)
    for one in axes[count:]:
        one.axis("off")
    for one, (panel, found) in zip(axes, predicted, strict=False):
        draw_panel(one, analysis, panel, found, "closed")
    if predicted:
        axes[0].legend(fontsize=7, frameon=False)
    _roofline(axes[len(predicted)], analysis, points)
    if first:
        _shares(axes[len(predicted) + 1], first)
    figure.suptitle(f"{analysis.model}; filled: measured, hollow: predicted", fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    figure.savefig(path)
    plt.close(figure)
    return [path]


def _roofline(axes: Any, analysis: Analysis, points: Sequence[ExplainedPoint]) -> None:
    """Operations per second against operations per byte; the roofs are those of the fastest and slowest probe."""
    arms = list(dict.fromkeys(point.arm for point in points))
    for arm in arms:
        mine = [point.achieved for point in points if point.arm == arm]
        number = looks.names(analysis).index(arm)
        color, marker = looks.LIGHT[looks.color(number)], looks.MATPLOTLIB[looks.shape(number)]
        x, y = [one.work.intensity for one in mine], [one.flop_s / 1e9 for one in mine]
        axes.plot(x, y, color=color, marker=marker, markersize=4, lw=1.2, label=arm)
    of_first = [point for point in points if point.arm == arms[0]]
    for point in of_first[:: max(1, -(-len(of_first) // LABELLED))]:
        where = point.achieved.work.intensity, point.achieved.flop_s / 1e9
        axes.annotate(f"{point.load.value:g}", where, (3, -9), textcoords="offset points", fontsize=7)
    for pick, style in ((min, "-"), (max, "--")):
        known = [one for point in points if (one := _ceilings(point))]
        if known:
            bandwidth, peak = (pick(values) for values in zip(*known, strict=True))
            ends = [min(point.achieved.work.intensity for point in points) / 2, peak / bandwidth]
            ends.append(max(ends[1], max(point.achieved.work.intensity for point in points)) * 2)
            for left, right in pairwise(ends):
                axes.plot(
                    [left, right], [min(peak, bandwidth * at) / 1e9 for at in (left, right)], style, color="0.4", lw=1
                )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of weights and cache", ylabel="GFLOP/s of a decode step")
    axes.set_title("Roofline: numbers are requests at a time", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    axes.grid(alpha=0.25)


def _ceilings(point: ExplainedPoint) -> tuple[float, float] | None:
    """Bytes/s and FLOP/s."""
    achieved = point.achieved
    if achieved.bandwidth_bytes_s is None or achieved.flops_s is None:
        return None
    return achieved.bandwidth_bytes_s, achieved.flops_s


def _shares(axes: Any, points: Sequence[ExplainedPoint]) -> None:
    """Expected seconds of one arm's steps by what takes them, over the measured ones."""
    bottom = [0.0] * len(points)
    for number, regime in enumerate(REGIMES):
        heights = [(point.achieved.shares or {})[regime] for point in points]
        if any(height > 0.001 for height in heights):
            axes.bar(range(len(points)), heights, bottom=bottom, color=looks.LIGHT[number], label=regime, width=0.8)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.axhline(1.0, color="0.4", lw=1, ls="--")
    axes.set_xticks(range(len(points)), [f"{point.load.value:g}" for point in points], fontsize=7)
    axes.set(xlabel="concurrent requests", ylabel="of the measured step", ylim=(0, max(1.25, 1.05 * max(bottom))))
    axes.set_title(f"What a step of {points[0].arm} is spent on, expected", fontsize=10)
    axes.legend(fontsize=7, frameon=False, ncols=len(REGIMES), loc="upper left")
