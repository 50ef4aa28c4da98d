"""PNG plots for documents: throughput, speed-up, latency, experts and bandwidth against the load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.analysis import Analysis
from loadtest.outputs import looks, panels
from loadtest.outputs.panels import Curve, Panel
from loadtest.outputs.words import AXIS
from sglang_moe_opt.pyplot import pyplot

COLUMNS = 2
LABEL_INCHES = 0.36
"""Room that a tick's text needs."""


@dataclass(frozen=True)
class Picture:
    """One file; panels without data are left out, and the file with them all."""

    name: str
    panels: tuple[Panel, ...]


PICTURES = (
    Picture("throughput", (panels.THROUGHPUT,)),
    Picture("speedup", (panels.SPEEDUP,)),
    Picture("latency", (*panels.TTFT, *panels.TPOT)),
    Picture("experts", (panels.DISTINCT,)),
    Picture("bandwidth", (panels.GIGABYTES, panels.COMPUTE)),
)


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """The first kind of load has the plain file names. Raises NoMatplotlibError."""
    pyplot()  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, kind in enumerate(panels.kinds(analysis)):
        for picture in PICTURES:
            drawn = [(panel, panels.curves(analysis, panel, kind)) for panel in picture.panels]
            drawn = [(panel, found) for panel, found in drawn if any(not curve.is_imported for curve in found)]
            if drawn:
                path = folder / f"{picture.name}{f'_{kind}' if number else ''}.png"
                _draw(analysis, drawn, kind, path)
                written.append(path)
    return written


def _draw(analysis: Analysis, drawn: list[tuple[Panel, list[Curve]]], kind: str, path: Path) -> None:
    plt = pyplot()
    columns = min(COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    size = (7.2, 4.6) if len(drawn) == 1 else (5.4 * columns, 3.7 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, dpi=144, layout="constrained", squeeze=False)
    for axes in grid.flat[len(drawn) :]:
        axes.axis("off")
    for axes, (panel, found) in zip(grid.flat, drawn, strict=False):
        draw_panel(axes, analysis, _with_ceiling(analysis, panel), found, kind)
    grid.flat[0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"{analysis.model}; {_bars(drawn)}", fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def draw_panel(axes: Any, analysis: Analysis, panel: Panel, found: list[Curve], kind: str) -> None:
    """One plot into its axes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if panel.reference is not None:
        axes.axhline(panel.reference, color="0.4", lw=1, ls="--")
    for curve in found:
        _curve(axes, curve)
    at = panels.labels(analysis, kind, found)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [f"{value:g}" for value in at])
    axes.set_xticks([], minor=True)
    _thin(axes, at)
    if panels.is_log(panel, found):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set(xlabel=AXIS[kind], ylabel=panel.label)
    axes.set_title(panel.title, fontsize=10)
    axes.grid(alpha=0.25)


def _curve(axes: Any, curve: Curve) -> None:
    color, marker = looks.LIGHT[looks.color(curve.number)], looks.MATPLOTLIB[looks.shape(curve.number)]
    x = [point.x for point in curve.points]
    y = [point.spread.median for point in curve.points]
    low = [max(0.0, point.spread.median - point.spread.low) for point in curve.points]
    high = [max(0.0, point.spread.high - point.spread.median) for point in curve.points]
    axes.errorbar(
        x,
        y,
        yerr=(low, high),
        color=color,
        marker=marker,
        markersize=5,
        markerfacecolor="white" if curve.is_imported else color,
        lw=0 if curve.is_imported else 1.4,
        elinewidth=1,
        capsize=2,
        label=curve.name,
    )


def _thin(axes: Any, at: Sequence[float]) -> None:
    """Texts of neighbouring levels would cover each other: the largest keeps its own, then every one that has room."""
    room = LABEL_INCHES / axes.figure.get_size_inches()[0] * axes.get_gridspec().ncols
    shown = at[-1]
    for tick, value in list(zip(axes.get_xticklabels(), at, strict=True))[-2::-1]:
        if shown / value < (at[-1] / at[0]) ** room:
            tick.set_visible(False)
        else:
            shown = value


def _with_ceiling(analysis: Analysis, panel: Panel) -> Panel:
    """GB/s with the read bandwidth that was measured beside the points."""
    if panel is not panels.GIGABYTES:
        return panel
    known = [
        cell.values["gb_s"].median / share.median
        for cell in analysis.cells
        if (share := cell.values.get("bandwidth_share")) and share.median
    ]
    return replace(panel, reference=median(known)) if known else panel


def _bars(drawn: list[tuple[Panel, list[Curve]]]) -> str:
    speedups = any(panel.is_speedup for panel, _ in drawn)
    return "bars: 95 % interval, paired by round" if speedups else "medians of the rounds, bars: quartiles"
