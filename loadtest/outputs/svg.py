"""A panel as inline SVG: one curve for each arm over the load, with intervals, and hollow points of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtest.load import Load
from loadtest.outputs import looks, tips
from loadtest.outputs.panels import Curve, Panel, Point, is_log
from loadtest.outputs.words import AXIS
from sglang_moe_opt.report import marks
from sglang_moe_opt.report.axes import Scale, Size, frame, levels, linear, logarithmic

APART = 2.5
"""Pixels between the intervals of two arms at one load, or they would hide one another."""


def plot(panel: Panel, found: Sequence[Curve], loads: Sequence[float], kind: str, size: Size) -> str:
    """The drawing for one width of the page; `loads` are the ticks of its load axis."""
    values = [end for curve in found for point in curve.points for end in _ends(point)]
    values += [] if panel.reference is None else [panel.reference]
    if is_log(panel, list(found)):
        y_axis = logarithmic(panel.label, values, size.up)
    else:
        y_axis = linear(panel.label, [*values, 0.0] if panel.from_zero else values, size.up)
    size = size.beside(y_axis)
    x_axis = levels(AXIS[kind], loads, size.across)
    parts = frame(x_axis, y_axis, size)
    if panel.reference is not None:
        parts.append(
            f'<path class="reference" d="M{size.left},{y_axis.scale(panel.reference):.1f}H{size.width - size.right}"/>'
        )
    parts += [_curve(curve, x_axis.scale, y_axis.scale, _shift(found, curve, panel)) for curve in found]
    return (
        f'<svg class="plot {size.name}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(panel.title)} against {escape(AXIS[kind])}">{"".join(parts)}</svg>'
    )


def legend_marker(number: int, *, is_imported: bool = False) -> str:
    hollow = " hollow" if is_imported else ""
    return marks.key(looks.path(number), looks.kind(number) + hollow)


def row_key(arm: str, load: Load) -> str:
    """What a point and its row in the table of points have in common."""
    return f"{load.label}|{arm}"


def _curve(curve: Curve, x: Scale, y: Scale, shift: float) -> str:
    kind = looks.kind(curve.number)
    dots = [(point, x(point.x) + shift, y(point.spread.median)) for point in curve.points]
    line = "L".join(f"{px:.1f},{py:.1f}" for _, px, py in dots)
    joined = "" if curve.is_imported or len(dots) < 2 else f'<path class="line" d="M{line}"/>'
    inside = "".join(_dot(point, px, py, y, curve) for point, px, py in dots)
    return f'<g class="{kind}" data-series="{curve.number}">{joined}{inside}</g>'


def _dot(point: Point, px: float, py: float, y: Scale, curve: Curve) -> str:
    low, high = (y(end) for end in _ends(point))
    whisker = f'<path class="whisker" d="M{px:.1f},{low:.1f}V{high:.1f}"/>' if low - high > 1 else ""
    about = ""
    if point.cell:
        about = f'data-row="{escape(row_key(point.cell.arm, point.cell.load))}"'
    elif point.imported:
        about = f'data-tip="{escape(tips.of_imported(point.imported))}"'
    mark = marks.placed(looks.path(curve.number), "mark hollow" if curve.is_imported else "mark", px, py)
    return f'<g class="point" data-x="{px:.1f}" data-y="{py:.1f}" {about}>{whisker}{mark}</g>'


def _ends(point: Point) -> tuple[float, float]:
    return min(point.spread.low, point.spread.median), max(point.spread.high, point.spread.median)


def _shift(found: Sequence[Curve], curve: Curve, panel: Panel) -> float:
    """Sideways, where intervals are what a reader compares."""
    if not panel.is_speedup:
        return 0.0
    return APART * (list(found).index(curve) - (len(found) - 1) / 2)
