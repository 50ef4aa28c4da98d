"""Numbers, ratios and loads as text, alike in every format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from loadtest.analysis import Spread
from loadtest.load import Load
from loadtest.metrics import BY_TAG

ROUNDS_OF_AN_INTERVAL = 3
"""From so many rounds on a speed-up has a 95 % interval; below it the range of the rounds stands in its place."""
AXIS = {
    "closed": "concurrent requests",
    "poisson": "requests per second (Poisson arrivals)",
    "trace": "times as fast as the trace",
}

Verdict = Literal["faster", "slower", "no difference", "measured once"]


def number(tag: str, value: float) -> str:
    """A metric's value with its usual decimals, fewer where three digits say enough."""
    whole = len(f"{abs(value):.0f}")
    return f"{value:,.{min(BY_TAG[tag].decimals, max(0, 3 - whole))}f}"


def with_unit(tag: str, value: float) -> str:
    return f"{number(tag, value)} {BY_TAG[tag].unit}".rstrip()


def counted(count: int, thing: str) -> str:
    """`1 arm`, `3 arms`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def at(*loads: Load, among: Sequence[Load] = ()) -> str:
    """`at 1, 2 and 16 to 64 concurrent requests`, if `among` has no others between; labels where the kinds differ."""
    ordered = sorted(loads)
    kinds = {load.kind for load in ordered}
    if len(kinds) > 1:
        return f"at {labels(ordered)}"
    *others, last = _ranges(ordered, among)
    values = f"{', '.join(others)} and {last}" if others else last
    requests = "request" if values == "1" else "requests"
    units = {"closed": f"concurrent {requests}", "poisson": f"{requests} per second"}
    return f"at {values} {units.get(kinds.pop(), 'times the speed of the trace')}"


def _ranges(loads: Sequence[Load], among: Sequence[Load]) -> list[str]:
    """Values, three or more neighbours as `16 to 64`."""
    every = sorted({*loads, *among})
    groups: list[list[Load]] = []
    for load in loads:
        if groups and every.index(load) - every.index(groups[-1][-1]) == 1:
            groups[-1].append(load)
        else:
            groups.append([load])
    values = [[f"{load.value:g}" for load in group] for group in groups]
    return [text for group in values for text in ([f"{group[0]} to {group[-1]}"] if len(group) > 2 else group)]


def labels(loads: Iterable[Load]) -> str:
    """`c1, c2, c16`."""
    return ", ".join(load.label for load in sorted(loads))


def verdict(ratio: Spread) -> Verdict:
    """What a speed-up says."""
    if len(ratio.all) < 2:
        return "measured once"
    if ratio.low > 1:
        return "faster"
    return "slower" if ratio.high < 1 else "no difference"


def interval_kind(ratio: Spread) -> str:
    """What the ends of a speed-up are: `95 %` or `range`."""
    return "95 %" if len(ratio.all) >= ROUNDS_OF_AN_INTERVAL else "range"


def ends(ratio: Spread, between: str = " to ") -> str:
    """`1.08 to 1.16`; with a third decimal where it decides on which side of 1 an end is."""
    low, high = (f"{end:.3f}" if f"{end:.2f}" == "1.00" else f"{end:.2f}" for end in (ratio.low, ratio.high))
    return f"{low}{between}{high}"


def interval(ratio: Spread) -> str:
    """`95 % interval 1.08 to 1.16`, or what stands in its place."""
    if len(ratio.all) < 2:
        return "one round"
    kind = "95 % interval" if interval_kind(ratio) == "95 %" else f"range of {len(ratio.all)} rounds"
    return f"{kind} {ends(ratio)}"
