"""PNG plots against the experts kept: one line for each method, to the whole model at the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.comparison import Comparison, Measure
from eval.outputs import kept
from eval.outputs.points import AXIS, make_point
from sglang_moe_opt.pyplot import pyplot
from sglang_moe_opt.report import series

FILES: dict[Measure, str] = {
    "average": "accuracy_vs_experts_kept.png",
    "bits_per_byte": "bits_per_byte_vs_experts_kept.png",
}


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Nothing where no schedule ran under another plan than the baseline's; png.write has chosen the backend."""
    written = []
    for measure, name in FILES.items():
        if found := kept.series(comparison, measure):
            _draw(comparison, found, measure, folder / name)
            written.append(folder / name)
    return written


def _draw(comparison: Comparison, found: list[kept.Series], measure: Measure, path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.6), dpi=144, layout="constrained")
    full = make_point(comparison, comparison.baseline, measure, 100 * comparison.baseline.share)
    axes.axhline(full.y, color="0.6", lw=0.8, ls=":")
    for one in found:
        _series(axes, one)
    axes.scatter(full.x, full.y, s=130, facecolors="none", edgecolors="black", lw=1, label=full.row.label, zorder=3)
    axes.set(xlabel=kept.AXIS, ylabel=AXIS[measure])
    axes.set_title(
        f"{comparison.model}; bars: 95 % interval of the paired difference from {full.row.label}", fontsize=9
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _series(axes: Any, one: kept.Series) -> None:
    color = series.LIGHT[series.color(one.number)]
    for point in one.points:
        if point.interval and point.shows_interval:
            axes.vlines(point.x, point.interval.low, point.interval.high, color=color, lw=1.2, alpha=0.5)
    x, y = [p.x for p in one.points], [p.y for p in one.points]
    axes.plot(x, y, color=color, lw=1.2, marker=series.MATPLOTLIB[series.shape(one.number)], ms=5, label=one.name)
