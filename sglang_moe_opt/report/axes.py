"""Axes of inline SVG plots: round ticks, scales from values to pixels, and the frame with its labels.

Colours come from the page's style sheet by class, so that one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from math import ceil, floor, log2, log10

Scale = Callable[[float], float]
Pixels = tuple[float, float]

CHARACTER = 6.6
"""Width of a digit at the size of tick labels, in pixels."""
GAP = 8.0
"""Least distance between two tick labels, in pixels."""
MOST_LOG_TICKS = 8


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

    @property
    def across(self) -> Pixels:
        """Where values go from left to right."""
        return self.left + 8, self.width - self.right - 8

    @property
    def up(self) -> Pixels:
        """Where values go from bottom to top."""
        return self.height - self.bottom - 6, self.top + 6

    def beside(self, axis: Axis) -> Size:
        """The same drawing with room for the texts of its vertical axis."""
        longest = max((len(text) for _, text in axis.marks), default=0)
        return replace(self, left=max(self.left, round(30 + CHARACTER * longest)))


WIDE = Size("wide", 570, 390)
NARROW = Size("narrow", 350, 330, labels=5)


@dataclass(frozen=True)
class Axis:
    """One axis: `scale` puts values into pixels, `marks` are ticks with their texts, empty where there is no room."""

    label: str
    scale: Scale
    marks: tuple[tuple[float, str], ...]


def linear(label: str, values: Sequence[float], pixels: Pixels, count: int = 6) -> Axis:
    """Even steps of about `count` round numbers."""
    at = ticks(min(values), max(values), count)
    low, high = min([*at, *values]), max([*at, *values])
    domain = (low, high) if high > low else (low - 1, high + 1)
    return Axis(label, between(domain, pixels), tuple((tick, number(tick, at)) for tick in at))


def logarithmic(label: str, values: Sequence[float], pixels: Pixels) -> Axis:
    """Even ratios of values above 0; ticks at powers of ten and, where these are few, between them."""
    low, high = min(values), max(values)
    choices = [_log_ticks(low, high, steps) for steps in ((1, 2, 5), (1, 3), (1,))]
    at = next((found for found in choices if len(found) <= MOST_LOG_TICKS), choices[-1])
    return Axis(label, log_between((low, high), pixels), tuple((tick, f"{tick:,.10g}") for tick in at))


def levels(label: str, values: Sequence[float], pixels: Pixels) -> Axis:
    """Even ratios with a tick at each value; the ends and powers of two are the first to get their texts."""
    at = sorted(set(values))
    scale = log_between((at[0], at[-1]), pixels)
    taken: list[Pixels] = []
    shown: set[float] = set()
    for value in sorted(at, key=lambda v: (v not in (at[0], at[-1]), not _is_power_of_two(v), -v)):
        half = len(f"{value:g}") * CHARACTER / 2
        left, right = scale(value) - half, scale(value) + half
        if all(right + GAP < other_left or left - GAP > other_right for other_left, other_right in taken):
            taken.append((left, right))
            shown.add(value)
    return Axis(label, scale, tuple((value, f"{value:g}" if value in shown else "") for value in at))


def frame(x: Axis, y: Axis, size: Size) -> list[str]:
    """Both axes with ticks, grid lines and labels."""
    bottom, right = size.height - size.bottom, size.width - size.right
    parts = [f'<path class="axis" d="M{size.left},{bottom}H{right}"/>']
    for tick, text in y.marks:
        parts.append(f'<path class="grid" d="M{size.left},{y.scale(tick):.1f}H{right}"/>')
        parts.append(f'<text x="{size.left - 7}" y="{y.scale(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for tick, text in x.marks:
        parts.append(f'<path class="axis" d="M{x.scale(tick):.1f},{bottom}v5"/>')
        if text:
            parts.append(f'<text x="{x.scale(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    middle, center = (size.left + right) / 2, (size.top + bottom) / 2
    parts.append(
        f'<text class="title" x="{middle:.0f}" y="{size.height - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    parts.append(
        f'<text class="title" transform="translate(11,{center:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    return parts


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    if high <= low:
        pad = abs(low) * 0.01 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [round(i * step, 10) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def number(value: float, marks: Sequence[float]) -> str:
    """A tick's text, with as many decimals as tell it from its neighbours."""
    step = min((b - a for a, b in pairwise(marks)), default=1.0)
    decimals = max(0, -floor(log10(step) + 1e-9))
    while decimals < 6 and abs(round(step, decimals) - step) > 1e-9:
        decimals += 1
    return f"{value:,.{decimals}f}"


def between(domain: tuple[float, float], pixels: Pixels) -> Scale:
    """The straight line that puts the domain's ends at the pixels."""
    factor = (pixels[1] - pixels[0]) / (domain[1] - domain[0])
    return lambda value: pixels[0] + (value - domain[0]) * factor


def log_between(domain: tuple[float, float], pixels: Pixels) -> Scale:
    """As `between`, of logarithms; a single value stands in the middle."""
    low, high = domain if domain[1] > domain[0] else (domain[0] / 2, domain[1] * 2)
    straight = between((log10(low), log10(high)), pixels)
    return lambda value: straight(log10(value))


def _log_ticks(low: float, high: float, steps: Sequence[int]) -> list[float]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    found = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _is_power_of_two(value: float) -> bool:
    return value > 0 and log2(value).is_integer()
