"""The report's plot against the experts kept: one line for each method, to the whole model at the right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.outputs.kept import AXIS, Series
from eval.outputs.points import Point
from sglang_moe_opt.report import marks, series
from sglang_moe_opt.report.axes import Scale, Size, frame, linear


def plot(found: Sequence[Series], full: Point, y_label: str, size: Size) -> str:
    """Value against the share of the experts' memory, with intervals; `full` is the baseline's point."""
    points = {point.row.label: point for one in found for point in one.points} | {full.row.label: full}
    ends = [
        end for p in points.values() if p.interval and p.shows_interval for end in (p.interval.low, p.interval.high)
    ]
    y_axis = linear(y_label, [p.y for p in points.values()] + ends, size.up)
    size = size.beside(y_axis)
    x_axis = linear(AXIS, [p.x for p in points.values()], size.across)
    x, y = x_axis.scale, y_axis.scale
    parts = frame(x_axis, y_axis, size)
    parts.append(f'<path class="full-line" d="M{size.left},{y(full.y):.1f}H{size.width - size.right}"/>')
    parts += [_line(one, x, y) for one in found]
    kinds = {point.row.label: one.number for one in found for point in one.points if point.row.plan != full.row.plan}
    parts += [_marker(point, kinds.get(label, 0), x(point.x), y) for label, point in points.items()]
    return (
        f'<svg class="plot {size.name}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(y_label)} against experts kept">{"".join(parts)}</svg>'
    )


def _line(one: Series, x: Scale, y: Scale) -> str:
    line = "L".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in one.points)
    return f'<g class="{series.kind(one.number)}"><path class="line" d="M{line}"/></g>'


def _marker(point: Point, number: int, px: float, y: Scale) -> str:
    py, whisker = y(point.y), ""
    if point.interval:
        kind = "whisker" if point.shows_interval else "whisker hidden"
        whisker = f'<path class="{kind}" d="M{px:.1f},{y(point.interval.low):.1f}V{y(point.interval.high):.1f}"/>'
    ring = f'<circle class="ring" cx="{px:.1f}" cy="{py:.1f}" r="8.5"/>' if point.row.is_baseline else ""
    return (
        f'<g class="{series.kind(number)}"><g class="point" data-x="{px:.1f}" data-y="{py:.1f}" '
        f'data-row="{escape(point.row.label)}" data-tip="{escape(_tip(point))}">{whisker}{ring}'
        f"{marks.placed(series.path(number), 'mark', px, py)}</g></g>"
    )


def _tip(point: Point) -> str:
    """Lines of the hover text."""
    decimals = 4 if point.measured.estimate.value < 20 and point.measured.left is None else 2
    plan, change = point.row.plan, point.measured.change
    kept = f"{plan.mean_kept:.4g} of {plan.num_experts} experts" if plan else "all experts"
    bound = "≤ " if point.row.shape == "dynamic" else ""
    return "\n".join(
        [
            point.row.label,
            f"{point.y:.{decimals}f} with {kept}, {point.x:.3g} % of their memory",
            f"mean na {bound}{point.row.mean_na:.3g}",
            change.verdict if change else "what the others are compared with",
            *(["on the Pareto front"] if point.measured.on_front else []),
        ]
    )
