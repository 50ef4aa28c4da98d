"""Memory of a server's processes over time: how fast each grows, and how sure that is. Pure but for `sample`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import psutil
from scipy.stats import theilslopes

MIB: Final = 1 << 20
BLOCKS: Final = 24
"""Samples near in time are alike; medians of so many stretches of the run are taken as one observation each."""
CONFIDENCE: Final = 0.95
LEAST_SECONDS: Final = 300.0
"""A shorter series says nothing of growth per hour."""

Outcome = Literal["flat", "grows", "undecided", "too short"]


@dataclass(frozen=True)
class Growth:
    """Growth of one process in MiB per hour: Theil-Sen slope with its 95 % interval, and what that means.

    `flat`: the interval lies at or below what is allowed. `grows`: it lies above. `undecided`: what is allowed lies
    inside it. `too short`: there is less than `LEAST_SECONDS` of it.
    """

    slope: float | None
    low: float | None
    high: float | None
    outcome: Outcome


@dataclass
class Series:
    """One process: seconds since the beginning and resident bytes, as they were sampled."""

    name: str
    pid: int
    seconds: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    def growth(self, warm_up_s: float, allowed_mib_per_hour: float) -> Growth:
        """How fast it grows after the warm-up."""
        kept = [(at, size) for at, size in zip(self.seconds, self.rss, strict=True) if at >= warm_up_s]
        if not kept or kept[-1][0] - kept[0][0] < LEAST_SECONDS or len(kept) < 2 * BLOCKS:
            return Growth(None, None, None, "too short")
        slope, low, high = slope_mib_per_hour([at for at, _ in kept], [size for _, size in kept])
        outcome: Outcome = "flat" if high <= allowed_mib_per_hour else "undecided"
        return Growth(slope, low, high, "grows" if low > allowed_mib_per_hour else outcome)

    def to_object(self, growth: Growth) -> dict[str, Any]:
        """JSON-ready: MiB by second, and the growth."""
        mib = [round(size / MIB, 2) for size in self.rss]
        seconds = [round(at, 1) for at in self.seconds]
        return {"process": self.name, "pid": self.pid, **asdict(growth), "seconds": seconds, "rss_mib": mib}


def slope_mib_per_hour(seconds: Sequence[float], rss: Sequence[int]) -> tuple[float, float, float]:
    """Theil-Sen slope over the medians of `BLOCKS` equal stretches of samples, and its 95 % interval.

    Medians of pairwise slopes, as memory moves in steps and spikes that would carry a least-squares line away; over
    blocks, as consecutive samples are not independent and would make the interval too narrow.
    """
    times = [float(np.median(block)) for block in np.array_split(np.asarray(seconds, float), BLOCKS)]
    sizes = [float(np.median(block)) / MIB for block in np.array_split(np.asarray(rss, float), BLOCKS)]
    slope, _, low, high = theilslopes(sizes, times, CONFIDENCE)
    return float(slope) * 3600, float(low) * 3600, float(high) * 3600


class Memory:
    """Series of every process of a server, by process id."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.series: dict[int, Series] = {}

    def sample(self, at: float) -> None:
        """Note what each process of the group holds now, `at` seconds from the beginning."""
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self._group:
                    size, name = process.memory_info().rss, _name(process)
                    series = self.series.setdefault(process.pid, Series(name, process.pid))
                    series.seconds.append(at)
                    series.rss.append(size)
            except (ProcessLookupError, psutil.Error):
                continue  # ended meanwhile


def _name(process: psutil.Process) -> str:
    """What a process calls itself: SGLang's set a title; others are named by their module or program."""
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("sglang::"):
        return words[0].strip()
    if "-c" in words[:-1]:
        return words[words.index("-c") + 1].partition(" import ")[0].removeprefix("from ").strip()[:60]
    return words[words.index("-m") + 1] if "-m" in words[:-1] else os.path.basename(words[0])
