"""Is a growing process told from a flat one that moves?"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from loadtest.soak.memory import LEAST_SECONDS, MIB, Memory, Series, slope_mib_per_hour

SECONDS = np.arange(0, 1800, 2.0)


def series(mib: Callable[[np.ndarray], np.ndarray], seconds: np.ndarray = SECONDS) -> Series:
    return Series("scheduler", 1, list(seconds), [int(size * MIB) for size in mib(seconds)])


def noise(seed: int, scale: float = 3.0) -> np.ndarray:
    """As memory moves: correlated over a minute, with spikes."""
    rng = np.random.default_rng(seed)
    walk = np.convolve(rng.normal(0, scale, len(SECONDS) + 30), np.ones(30) / 5, "valid")[: len(SECONDS)]
    return walk + 200 * (rng.random(len(SECONDS)) < 0.01)


def test_a_line_has_its_slope() -> None:
    assert slope_mib_per_hour(SECONDS, [int(MIB * (500 + s / 36)) for s in SECONDS]) == pytest.approx(
        (100,) * 3, rel=1e-3
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_in_noise(seed: int) -> None:
    growth = series(lambda s: 600 + s * 200 / 3600 + noise(seed)).growth(450, 32)
    assert growth.outcome == "grows"
    assert growth.low is not None and growth.slope is not None and growth.high is not None
    assert growth.low < growth.slope < growth.high and growth.slope == pytest.approx(200, abs=60)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_leak(seed: int) -> None:
    assert series(lambda s: 600 + noise(seed, 1.0)).growth(450, 32).outcome == "flat"


def test_the_warm_up_does_not_count() -> None:
    filled = series(lambda s: 400 + 300 * np.minimum(s / 1000, 1))
    assert filled.growth(1000, 32).outcome == "flat"
    assert filled.growth(0, 32).outcome == "grows"


def test_what_lies_on_both_sides_of_the_limit_is_undecided() -> None:
    growth = series(lambda s: 600 + s * 32 / 3600 + noise(1)).growth(450, 32)
    assert growth.outcome == "undecided"


def test_a_short_series_says_nothing() -> None:
    short = series(lambda s: 600 + s, np.arange(0, LEAST_SECONDS - 1, 2.0))
    assert (short.growth(0, 32).outcome, short.growth(0, 32).slope) == ("too short", None)
    assert Series("gone", 2).growth(0, 32).outcome == "too short"
    assert series(lambda s: 600 + s).growth(1790, 32).outcome == "too short"


def test_our_own_process_is_seen() -> None:
    memory = Memory(os.getpgid(0))
    memory.sample(0.0)
    memory.sample(1.0)
    own = memory.series[os.getpid()]
    assert own.seconds == [0.0, 1.0] and min(own.rss) > MIB
    assert own.to_object(own.growth(0, 1))["outcome"] == "too short"
