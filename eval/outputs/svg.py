"""Scalable drawings of the report: the plot against mean na, and the small pictures inside tables.

Colours come from the page's style sheet by class, so that one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil

from eval.comparison import Shape
from eval.outputs.points import Point, front
from eval.statistics import Interval
from sglang_moe_opt.report import marks
from sglang_moe_opt.report.axes import Scale, Size, between, frame, linear

MARKERS: dict[Shape, str] = {
    "uniform": marks.CIRCLE,
    "ascending": marks.UP,
    "descending": marks.DOWN,
    "mixed": marks.DIAMOND,
    "dynamic": marks.SQUARE,
}


def plot(found: Sequence[Point], y_label: str, size: Size, band: Interval | None, *, front_is_low: bool) -> str:
    """Value against mean na with intervals and the Pareto front; `band` is where repeats of `full` would fall."""
    ends = [end for p in found if p.interval and p.shows_interval for end in (p.interval.low, p.interval.high)]
    ends += [band.low, band.high] if band else []
    x_axis = linear("mean na (routed experts per token)", [p.x for p in found], size.across)
    y_axis = linear(y_label, [p.y for p in found] + ends, size.up)
    x, y = x_axis.scale, y_axis.scale
    parts = frame(x_axis, y_axis, size)
    if band:
        low, high = sorted((y(band.low), y(band.high)))
        width = size.width - size.left - size.right
        parts.append(f'<rect class="band" x="{size.left}" y="{low:.1f}" width="{width}" height="{high - low:.1f}"/>')
    full_y = y(found[0].y)
    parts.append(f'<path class="full-line" d="M{size.left},{full_y:.1f}H{size.width - size.right}"/>')
    best = front(list(found))
    if best:  # else pruned models, which are not shown here, beat them all
        line = "L".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in best)
        parts.append(f'<path class="front" d="M{line}"/>')
    parts += [_marker(p, x, y) for p in reversed(found)]
    parts += _labels(best, x, y, size, below=front_is_low)
    return (
        f'<svg class="plot {size.name}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(y_label)} against mean na">{"".join(parts)}</svg>'
    )


def legend_marker(shape: Shape) -> str:
    return marks.key(MARKERS[shape], shape)


def range_bar(interval: Interval, value: float, reach: Interval, kind: str) -> str:
    """An interval around its value beside zero; `reach` is what the axis spans, `kind` is loss, gain or none."""
    x = between((reach.low, reach.high), (4, 96))
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
        f"{marks.placed(MARKERS[shape], f'{kind} {shape}', px, py)}</g>"
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
    every = max(1, ceil(len(named) / size.labels))
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
