"""Scalable drawings of the report: the plot against mean na, and the small pictures inside tables.

Colours come from the page's style sheet by class, so that one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

from eval.compare import Shape
from eval.outputs.points import Point, front
from eval.statistics import Interval

MARKERS: dict[Shape, str] = {
    "uniform": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "ascending": "M0,-5.2L5,3.6L-5,3.6Z",
    "descending": "M0,5.2L5,-3.6L-5,-3.6Z",
    "mixed": "M0,-5.4L5.4,0L0,5.4L-5.4,0Z",
    "dynamic": "M-4,-4H4V4H-4Z",
}
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Size:
    """A drawing's size and margins in pixels; the page chooses by its width."""

    name: str
    width: int
    height: int
    left: int = 56
    right: int = 14
    top: int = 14
    bottom: int = 42
    labels: int = 12


WIDE = Size("wide", 570, 390)
NARROW = Size("narrow", 350, 330, labels=5)


def plot(found: Sequence[Point], y_label: str, size: Size, band: Interval | None, *, front_is_low: bool) -> str:
    """Value against mean na with intervals and the Pareto front; `band` is where repeats of `full` would fall."""
    ends = [end for p in found if p.interval and p.shows_interval for end in (p.interval.low, p.interval.high)]
    ends += [band.low, band.high] if band else []
    x_ticks = ticks(min(p.x for p in found), max(p.x for p in found), 6)
    y_ticks = ticks(min([p.y for p in found] + ends), max([p.y for p in found] + ends), 6)
    x = _scale(_range(x_ticks, [p.x for p in found]), (size.left + 8, size.width - size.right - 8))
    y = _scale(_range(y_ticks, [p.y for p in found] + ends), (size.height - size.bottom - 6, size.top + 6))
    parts = [*_axes(x_ticks, y_ticks, x, y, y_label, size)]
    if band:
        low, high = sorted((y(band.low), y(band.high)))
        width = size.width - size.left - size.right
        parts.append(f'<rect class="band" x="{size.left}" y="{low:.1f}" width="{width}" height="{high - low:.1f}"/>')
    full_y = y(found[0].y)
    parts.append(f'<path class="full-line" d="M{size.left},{full_y:.1f}H{size.width - size.right}"/>')
    line = "L".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in front(list(found)))
    parts.append(f'<path class="front" d="M{line}"/>')
    parts += [_marker(p, x, y) for p in reversed(found)]
    parts += _labels(front(list(found)), x, y, size, below=front_is_low)
    return (
        f'<svg class="plot {size.name}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(y_label)} against mean na">{"".join(parts)}</svg>'
    )


def legend_marker(shape: Shape) -> str:
    return f'<svg class="key" viewBox="-7 -7 14 14"><path class="mark {shape}" d="{MARKERS[shape]}"/></svg>'


def range_bar(interval: Interval, value: float, reach: Interval, kind: str) -> str:
    """An interval around its value beside zero; `reach` is what the axis spans, `kind` is loss, gain or none."""
    x = _scale((reach.low, reach.high), (4, 96))
    low, high = x(interval.low), x(interval.high)
    return (
        f'<svg class="range {kind}" viewBox="0 0 100 16" aria-hidden="true"><path class="zero" d="M{x(0):.1f},0V16"/>'
        f'<path class="bar" d="M{low:.1f},8H{max(high, low + 1):.1f}"/><circle cx="{x(value):.1f}" cy="8" r="3"/></svg>'
    )


def layer_bars(layers: Sequence[int], top: int) -> str:
    """Experts per layer as a row of bars; `top` is the height of the plot."""
    step = max(2.0, min(7.0, 72 / len(layers)))
    bars = "".join(
        f'<path d="M{i * step:.2f},16v{-16 * na / top:.1f}h{step * 0.78:.2f}V16Z"/>' for i, na in enumerate(layers)
    )
    width = step * len(layers)
    text = escape(", ".join(map(str, layers)))
    return (
        f'<svg class="layers" viewBox="0 0 {width:.1f} 16" style="width:{width:.0f}px" role="img" '
        f'aria-label="experts per layer: {text}"><title>experts per layer: {text}</title>{bars}</svg>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    if high <= low:
        pad = abs(low) * 0.01 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [round(i * step, 10) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _range(marks: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    low, high = min([*marks, *values]), max([*marks, *values])
    return (low, high) if high > low else (low - 1, high + 1)


def _scale(domain: tuple[float, float], pixels: tuple[float, float]) -> Scale:
    factor = (pixels[1] - pixels[0]) / (domain[1] - domain[0])
    return lambda value: pixels[0] + (value - domain[0]) * factor


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], x: Scale, y: Scale, y_label: str, size: Size
) -> list[str]:
    bottom, right = size.height - size.bottom, size.width - size.right
    parts = [f'<path class="axis" d="M{size.left},{bottom}H{right}"/>']
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{size.left},{y(tick):.1f}H{right}"/>')
        parts.append(
            f'<text x="{size.left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick, y_ticks)}</text>'
        )
    for tick in x_ticks:
        parts.append(f'<path class="axis" d="M{x(tick):.1f},{bottom}v5"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{_number(tick, x_ticks)}</text>')
    middle = (size.left + right) / 2
    parts.append(
        f'<text class="title" x="{middle:.0f}" y="{size.height - 6}" text-anchor="middle">'
        "mean na (routed experts per token)</text>"
    )
    center = (size.top + bottom) / 2
    parts.append(
        f'<text class="title" transform="translate(11,{center:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _marker(point: Point, x: Scale, y: Scale) -> str:
    shape, px, py = point.row.shape, x(point.x), y(point.y)
    whisker = ""
    if point.interval:
        kind = "whisker" if point.shows_interval else "whisker hidden"
        low, high = y(point.interval.low), y(point.interval.high)
        whisker = f'<path class="{kind} {shape}" d="M{px:.1f},{low:.1f}V{high:.1f}"/>'
    kind = "mark baseline" if point.row.is_baseline else "mark"
    ring = f'<circle class="ring" cx="{px:.1f}" cy="{py:.1f}" r="8.5"/>' if point.row.is_baseline else ""
    return (
        f'<g class="point" data-x="{px:.1f}" data-y="{py:.1f}" data-row="{escape(point.row.label)}" '
        f'data-tip="{escape(_tip(point))}">{whisker}{ring}'
        f'<path class="{kind} {shape}" transform="translate({px:.1f},{py:.1f})" d="{MARKERS[shape]}"/></g>'
    )


def _tip(point: Point) -> str:
    """Lines of the hover text."""
    decimals = 4 if point.measured.estimate.value < 20 and point.measured.left is None else 2
    change = point.measured.change
    bound = "≤ " if point.row.shape == "dynamic" else ""
    return "\n".join(
        [
            point.row.label,
            f"{point.y:.{decimals}f} at mean na {bound}{point.x:.3g} ({point.row.shape})",
            change.verdict if change else "what the others are compared with",
            *(["on the Pareto front"] if point.measured.on_front else []),
        ]
    )


def _labels(named: Sequence[Point], x: Scale, y: Scale, size: Size, *, below: bool) -> list[str]:
    """Names of some of the front's schedules, on the side where no other points are and apart from one another."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    every = ceil(len(named) / size.labels)
    for point in named[::-1][::every]:
        half = 3.3 * len(point.row.label) + 3
        at = min(max(x(point.x) - half - 3, size.left + half), size.width - size.right - half)
        low = y(point.y) > size.height - size.bottom - 24
        top = y(point.y) + (16 if below and not low else -9)
        room = all(abs(at - other) > half + width or abs(top - height) > 13 for other, height, width in taken)
        if room and len(point.row.label) <= 24:
            taken.append((at, top, half))
            parts.append(
                f'<text class="name" x="{at:.1f}" y="{top:.1f}" text-anchor="middle">{escape(point.row.label)}</text>'
            )
    return parts


def _number(value: float, marks: Sequence[float]) -> str:
    step = min((b - a for a, b in pairwise(marks)), default=1.0)
    decimals = max(0, -floor(log10(step) + 1e-9))
    while decimals < 6 and abs(round(step, decimals) - step) > 1e-9:
        decimals += 1
    return f"{value:.{decimals}f}"
