"""What two evaluations of the same items say about each other: paired differences, their errors, and noise.

Scores are shares of 1 (0 or 1 per item, or a mean over repeats); results are in points, hundredths of a share. Text is
in nats; its results are changes of bits per byte in percent. A difference is always `schedule - full`: a loss is
negative in points and positive in bits per byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Unit = Literal["points", "percent"]

CONFIDENCE = 0.95
POWER = 0.80
RESAMPLES = 4000
MAX_BOOTSTRAP_TEXTS = 2000
"""With more texts the closed form is as good as the bootstrap, whose memory grows with them."""

LN2 = log(2)
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
Z_POWER = float(stats.norm.ppf(POWER))


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of what it belongs to."""

    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimate:
    """A score (percent) or bits per byte with the sampling error of its items."""

    value: float
    error: float
    interval: Interval


@dataclass(frozen=True)
class Difference:
    """A paired difference of a schedule from `full`.

    Attributes:
        value: schedule - full in points, or the change of bits per byte in percent.
        error: standard error of value over the choice of items.
        interval: the 95 % interval that verdicts use.
        bootstrap: the 95 % interval of the paired bootstrap, as a check.
        p: two-sided; the chance of a difference this large where there is none.
        items: pairs compared; better, worse: how many of them the schedule did better or worse on than `full`.
    """

    value: float
    error: float
    interval: Interval
    bootstrap: Interval
    p: float
    items: int
    better: int
    worse: int
    unit: Unit

    @property
    def is_loss(self) -> bool:
        return self.value < 0 if self.unit == "points" else self.value > 0

    @property
    def largest_loss(self) -> float:
        """The largest loss that the 95 % interval leaves possible; 0 where it leaves none."""
        return max(0.0, -self.interval.low if self.unit == "points" else self.interval.high)

    @property
    def detectable(self) -> float:
        """The smallest true difference that this comparison would call significant with a power of 80 %."""
        return (Z + Z_POWER) * self.error


@dataclass(frozen=True)
class Noise:
    """How repeats of one schedule differ, in points.

    Attributes:
        averages: the average score of each run, in percent.
        flip_rate: share of items that score differently in two runs.
        error: standard deviation of one run's average that these flips cause.
    """

    averages: tuple[float, ...]
    flip_rate: float
    error: float

    @property
    def spread(self) -> float:
        return max(self.averages) - min(self.averages)

    @property
    def band(self) -> float:
        """Two runs of one schedule differ by less than this 95 times in 100."""
        return Z * sqrt(2) * self.error


def score(items: Array) -> Estimate:
    """A task's score in percent with Wilson's interval. Shape [items]."""
    n, share = len(items), float(items.mean())
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(100 * share, 100 * _error_of_mean(items), Interval(100 * (center - half), 100 * (center + half)))


def average_score(tasks: Sequence[Array]) -> Estimate:
    """The paper's average: the unweighted mean of the tasks' scores; its variance is that of the tasks / tasks^2."""
    value = 100 * float(np.mean([items.mean() for items in tasks]))
    error = 100 * sqrt(sum(_error_of_mean(items) ** 2 for items in tasks)) / len(tasks)
    return Estimate(value, error, Interval(value - Z * error, value + Z * error))


def bits_per_byte(nats: Array, n_bytes: Array) -> Estimate:
    """Bits per byte of all texts together, with the error of a ratio of sums. Shapes [texts]."""
    ratio = float(nats.sum() / n_bytes.sum())
    error = _ratio_error(nats, n_bytes, ratio)
    half = _t(len(nats)) * error
    return Estimate(ratio / LN2, error / LN2, Interval((ratio - half) / LN2, (ratio + half) / LN2))


def paired_points(schedule: Sequence[Array], full: Sequence[Array], seed: int = 0) -> Difference:
    """Difference in points of one task, or of the unweighted average of several; each pair has shape [items].

    The interval is Wald's with z^2 flips added to the heaviest item's variance: where no item flips it ends where the
    exact one would (z^2 / n), and with many flips the addition vanishes (it approximates Tango's score interval). One
    task is tested by McNemar's exact test, by sign where repeats make scores fractional; an average by its error.
    """
    differences = [s - f for s, f in zip(schedule, full, strict=True)]
    weights = [1 / (len(differences) * len(d)) for d in differences]
    value = sum(w * float(d.sum()) for w, d in zip(weights, differences, strict=True))
    spread = sum(w**2 * float(((d - d.mean()) ** 2).sum()) for w, d in zip(weights, differences, strict=True))
    error = sqrt(spread + (Z * max(weights)) ** 2)
    better = sum(int((d > 0).sum()) for d in differences)
    worse = sum(int((d < 0).sum()) for d in differences)
    drawn = _resampled_mean(differences, seed)
    return Difference(
        value=100 * value,
        error=100 * error,
        interval=Interval(100 * max(-1.0, value - Z * error), 100 * min(1.0, value + Z * error)),
        bootstrap=_percentiles(100 * drawn),
        p=mcnemar(better, worse) if len(differences) == 1 else float(2 * stats.norm.sf(abs(value) / error)),
        items=sum(map(len, differences)),
        better=better,
        worse=worse,
        unit="points",
    )


def paired_change(schedule: Array, full: Array, seed: int = 0) -> Difference:
    """Change of bits per byte in percent from the nats of the same texts, shapes [texts]."""
    n, ratio = len(full), float(schedule.sum() / full.sum())
    error = _ratio_error(schedule, full, ratio)
    half = _t(n) * error
    closed = Interval(100 * (ratio - 1 - half), 100 * (ratio - 1 + half))
    if n <= MAX_BOOTSTRAP_TEXTS:
        counts = _resample_counts(n, seed)
        drawn = _percentiles(100 * ((counts @ schedule) / (counts @ full) - 1))
    else:
        drawn = closed
    return Difference(
        value=100 * (ratio - 1),
        error=100 * error,
        interval=closed,
        bootstrap=drawn,
        p=float(2 * stats.t.sf(abs(ratio - 1) / error, max(1, n - 1))) if error else float(ratio == 1),
        items=n,
        better=int((schedule < full).sum()),
        worse=int((schedule > full).sum()),
        unit="percent",
    )


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test: items that changed sides should have gone either way equally often."""
    changed = better + worse
    return float(stats.binomtest(better, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down method, in the order given."""
    adjusted, running, count = [1.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def margin_over_chance(value: float, full: float, chance: float) -> float | None:
    """Share of `full`'s margin over guessing that is left, all in percent; None where `full` does not beat guessing."""
    return (value - chance) / (full - chance) if full > chance else None


def beats_chance(full: Array, chance: float) -> bool:
    """Whether a task's scores are better than guessing (chance as a share of 1), one-sided at 97.5 %. Shape [items]."""
    wins = round(float(full.sum()))
    return bool(stats.binomtest(wins, len(full), chance, alternative="greater").pvalue < (1 - CONFIDENCE) / 2)


def noise(repeats: Sequence[Array]) -> Noise:
    """Noise of the average from repeats, one array [runs, items] per task, with at least two runs."""
    averages = np.mean([task.mean(axis=1) for task in repeats], axis=0)
    within = [task.var(axis=0, ddof=1) for task in repeats]
    flips = 2 * np.concatenate(within).mean()  # E[(x - y)^2] = 2 variance, and (x - y)^2 is 1 for a flip
    error = sqrt(sum(float(v.mean()) / len(v) for v in within)) / len(repeats)
    return Noise(tuple(100 * float(a) for a in averages), float(flips), 100 * error)


def _error_of_mean(items: Array) -> float:
    return float(items.std(ddof=1)) / sqrt(len(items)) if len(items) > 1 else 0.0


def _ratio_error(numerator: Array, denominator: Array, ratio: float) -> float:
    """Standard error of sum(numerator) / sum(denominator), by linearisation."""
    n = len(numerator)
    if n < 2:
        return 0.0
    residuals = numerator - ratio * denominator
    return sqrt(n / (n - 1) * float((residuals**2).sum())) / float(denominator.sum())


def _t(n: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) if n > 1 else 0.0


def _percentiles(drawn: Array) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _resampled_mean(differences: Sequence[Array], seed: int) -> Array:
    """Bootstrap of the average of the tasks' means, shape [RESAMPLES].

    Items with equal differences are interchangeable, so drawing how often each value occurs is the bootstrap over items
    at a fraction of the work.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for task in differences:
        values, counts = np.unique(task.round(9), return_counts=True)
        total += generator.multinomial(len(task), counts / len(task), size=RESAMPLES) @ values / len(task)
    return total / len(differences)


@lru_cache(maxsize=4)
def _resample_counts(n: int, seed: int) -> Array:
    """How often each of n items is drawn in each bootstrap sample, shape [RESAMPLES, n]; the same for all schedules."""
    drawn = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    drawn += n * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float64)
