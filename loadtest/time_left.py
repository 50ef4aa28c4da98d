"""How long the rest of a sweep takes, by the points that were measured."""

from __future__ import annotations

from collections.abc import Iterable

from loadtest.load import Load


class TimeLeft:
    """Learns from every point. Args: least_s, what a point lasts at least; most_s, when it is cut off."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s, self._most_s = least_s, most_s
        self._seconds: dict[tuple[Load, str], float] = {}

    def learn(self, load: Load, arm: str, seconds: float) -> None:
        self._seconds[load, arm] = seconds

    def of(self, points: Iterable[tuple[Load, str]]) -> float | None:
        """Seconds of these points together; None as long as nothing was measured."""
        return sum(self._of(load, arm) for load, arm in points) if self._seconds else None

    def _of(self, load: Load, arm: str) -> float:
        """As it was, or as another arm did under that load, or in proportion to the nearest load below or above."""
        if (load, arm) in self._seconds:
            return self._seconds[load, arm]
        alike = [seconds for (other, _), seconds in self._seconds.items() if other == load]
        if alike:
            return max(alike)
        nearest = min((other for other, _ in self._seconds), key=lambda other: abs(other.value - load.value))
        known = max(seconds for (other, _), seconds in self._seconds.items() if other == nearest)
        if load.is_open:
            return known
        return min(max(self._least_s, known * load.value / nearest.value), self._most_s)


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
