"""PNG of a search from measurements: scores against mean na, and what the proposals do layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_moe_opt.files import replace_atomically
from sglang_moe_opt.pyplot import pyplot
from sglang_moe_opt.report import series

if TYPE_CHECKING:
    from sglang_moe_opt.search.measured_search import MeasuredSearch, Scored


def draw(found: MeasuredSearch, path: Path) -> None:
    """Raises NoMatplotlibError."""
    plt = pyplot()
    figure, (scores, layers) = plt.subplots(1, 2, figsize=(12, 4.8), dpi=144, layout="constrained")
    _scores(scores, found)
    _layers(layers, found)
    replace_atomically(path, lambda file: figure.savefig(file, format="png"))
    plt.close(figure)


def _proposals(found: MeasuredSearch) -> list[tuple[str, Scored]]:
    measured = [("best measured", found.best_measured[0])] if found.best_measured else []
    best = found.best_schedules[0]
    return [*measured, (f"best b,h,e,p: {best.label}", best), ("best per-layer table", found.best_layers)]


def _scores(axes: Any, found: MeasuredSearch) -> None:
    data, line = found.measurements, found.front
    x = [one.mean_na for one in line]
    axes.fill_between(x, [one.low for one in line], [one.high for one in line], color="0.88", lw=0)
    axes.plot(x, [one.predicted for one in line], color="0.4", lw=1, label="predicted front and its 95 % intervals")
    axes.scatter(data.mean_na, data.scores, s=14, color=series.LIGHT[0], alpha=0.6, lw=0, label="measured")
    axes.axvline(found.budget, color="0.5", lw=0.8, ls=":")
    for number, (name, one) in enumerate(_proposals(found), 1):
        color = series.LIGHT[series.color(number)]
        axes.vlines(one.mean_na, one.low, one.high, color=color, lw=1.2)
        marker = series.MATPLOTLIB[series.shape(number)]
        axes.scatter(one.mean_na, one.predicted, s=45, color=color, marker=marker, label=name, zorder=3)
    axes.set(xlabel="mean na (routed experts per token)", ylabel=data.column)
    axes.set_title(f"{len(data)} measurements; proposals for mean na <= {found.budget:g}, as predicted", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def _layers(axes: Any, found: MeasuredSearch) -> None:
    for number, (name, one) in enumerate(_proposals(found), 1):
        color = series.LIGHT[series.color(number)]
        marker = series.MATPLOTLIB[series.shape(number)]
        shifted = [na + 0.04 * (number - 2) for na in one.layers]  # so that equal values stay visible
        axes.plot(range(1, len(shifted) + 1), shifted, color=color, marker=marker, ms=4, lw=1, label=name)
    axes.set(xlabel="MoE layer, from 1", ylabel="na")
    axes.set_title("routed experts of each layer", fontsize=9)
    axes.grid(alpha=0.25)
