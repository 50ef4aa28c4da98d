"""Paired statistics against closed forms, scipy, simulation, and what must hold for any items."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from eval import statistics
from eval.statistics import Array, holm, mcnemar, paired_change, paired_points
from eval.verdicts import verdict

Z = stats.norm.ppf(0.975)
SCORES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


def pair(better: int, worse: int, n: int) -> tuple[Array, Array]:
    """A schedule and full that differ on so many of n items."""
    schedule, full = np.zeros(n), np.zeros(n)
    schedule[:better] = 1
    full[better : better + worse] = 1
    return schedule, full


def tango(better: int, worse: int, n: int) -> tuple[float, float]:
    """Tango's score interval for a paired difference (Statistics in Medicine 17, 1998), by root finding."""

    def distance(delta: float) -> float:
        a, b = 2 * n, -better - worse + (2 * n - better + worse) * delta
        share = (sqrt(b * b + 4 * a * worse * delta * (1 - delta)) - b) / (2 * a)
        return (better - worse - n * delta) / sqrt(n * (2 * share + delta * (1 - delta)))

    middle = (better - worse) / n
    low = optimize.brentq(lambda d: distance(d) - Z, -0.999, middle - 1e-9)
    return low, optimize.brentq(lambda d: distance(d) + Z, middle + 1e-9, 0.999)


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (10, 2, 0.038574), (7, 7, 1.0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_items_that_changed_sides(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-6)
    found = paired_points(*([x] for x in pair(better, worse, 100)))
    assert found.p == pytest.approx(p, abs=1e-6)
    assert (found.better, found.worse, found.items) == (better, worse, 100)


@pytest.mark.parametrize(("better", "worse", "n"), [(5, 5, 570), (20, 30, 500), (3, 9, 277), (100, 140, 2376)])
def test_interval_is_close_to_the_score_interval(better: int, worse: int, n: int) -> None:
    found = paired_points(*([x] for x in pair(better, worse, n))).interval
    low, high = tango(better, worse, n)
    width = 100 * (high - low)
    assert found.low == pytest.approx(100 * low, abs=0.06 * width)
    assert found.high == pytest.approx(100 * high, abs=0.06 * width)


@pytest.mark.parametrize("n", [50, 277, 3270])
def test_without_a_single_flip_the_interval_ends_where_the_exact_one_does(n: int) -> None:
    found = paired_points(*([x] for x in pair(0, 0, n)))
    exact = stats.binomtest(0, n).proportion_ci(0.95).high
    assert found.largest_loss == pytest.approx(100 * exact, rel=0.1)


def test_bootstrap_and_closed_form_agree_when_many_items_flip() -> None:
    found = paired_points(*([x] for x in pair(150, 210, 3000)))
    assert found.bootstrap.low == pytest.approx(found.interval.low, abs=0.1)
    assert found.bootstrap.high == pytest.approx(found.interval.high, abs=0.1)


def test_bootstrap_of_bits_per_byte_is_that_of_scipy() -> None:
    random = np.random.default_rng(3)
    full = random.gamma(6, 100, 150)
    schedule = full * (1.004 + 0.01 * random.standard_normal(150))
    found = paired_change(schedule, full)
    reference = stats.bootstrap(
        (schedule, full),
        lambda s, f, axis: 100 * (s.sum(axis) / f.sum(axis) - 1),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert found.bootstrap.low == pytest.approx(reference.confidence_interval.low, abs=0.01)
    assert found.bootstrap.high == pytest.approx(reference.confidence_interval.high, abs=0.01)
    assert found.error == pytest.approx(reference.standard_error, rel=0.05)
    assert found.interval.half == pytest.approx(found.bootstrap.half, rel=0.06)


def test_the_bootstrap_gives_the_same_interval_every_time() -> None:
    schedule, full = pair(30, 45, 400)
    assert paired_points([schedule], [full]) == paired_points([schedule], [full])


def test_score_has_wilsons_interval() -> None:
    items = np.repeat([1.0, 0.0], [37, 63])
    found, reference = statistics.score(items), stats.binomtest(37, 100).proportion_ci(0.95, "wilson")
    assert found.value == pytest.approx(37)
    assert (found.interval.low, found.interval.high) == pytest.approx((100 * reference.low, 100 * reference.high))


def test_average_is_unweighted_and_its_variance_is_the_sum_over_36() -> None:
    shares, sizes = (0.5, 0.4, 0.6, 0.3, 0.55, 0.5), (2376, 1172, 3270, 500, 277, 1267)
    tasks = [np.repeat([1.0, 0.0], [round(s * n), n - round(s * n)]) for s, n in zip(shares, sizes, strict=True)]
    found = statistics.average_score(tasks)
    assert found.value == pytest.approx(100 * np.mean([t.mean() for t in tasks]))
    expected = 100 * sqrt(sum(t.mean() * (1 - t.mean()) / (len(t) - 1) for t in tasks) / 36)
    assert found.error == pytest.approx(expected)
    assert 1.2 < found.interval.half < 1.5  # what the paper's six tests can tell, unpaired: 0.68 standard error


def test_difference_of_averages_combines_the_tasks() -> None:
    pairs = [pair(30, 40, 600), pair(10, 25, 300), pair(20, 20, 400)]
    found = paired_points([p[0] for p in pairs], [p[1] for p in pairs])
    single = [paired_points([s], [f]) for s, f in pairs]
    assert found.value == pytest.approx(np.mean([d.value for d in single]))
    assert found.error == pytest.approx(sqrt(sum(d.error**2 for d in single)) / 3, rel=0.03)
    assert found.error >= 100 / 3 * sqrt(sum((s - f).var() / len(s) for s, f in pairs))
    assert (found.better, found.worse) == (60, 85)


def test_pairing_makes_a_difference_far_more_certain_than_its_two_scores() -> None:
    random = np.random.default_rng(0)
    full = (random.random(1000) < 0.6).astype(float)
    schedule = np.where(random.random(1000) < 0.03, 1 - full, full)
    assert paired_points([schedule], [full]).error < 0.3 * sqrt(2) * statistics.score(full).error


@pytest.mark.parametrize(("worse", "better", "n"), [(0.05, 0.05, 500), (0.04, 0.01, 277), (0.01, 0.01, 300)])
def test_95_intervals_of_points_hold_95_times_in_100(worse: float, better: float, n: int) -> None:
    random = np.random.default_rng(11)
    truth, hits, trials = 100 * (better - worse), 0, 500
    for _ in range(trials):
        flips = random.multinomial(n, [better, worse, 1 - better - worse])
        interval = paired_points(*([x] for x in pair(int(flips[0]), int(flips[1]), n))).interval
        hits += interval.low <= truth <= interval.high
    assert 0.93 <= hits / trials <= 0.995


def test_95_intervals_of_averages_hold_95_times_in_100() -> None:
    random = np.random.default_rng(12)
    tasks, hits, trials = ((600, 0.08, 0.04), (300, 0.05, 0.05), (277, 0.06, 0.03)), 0, 400
    truth = 100 * float(np.mean([better - worse for _, worse, better in tasks]))
    for _ in range(trials):
        flips = [(n, random.multinomial(n, [better, worse, 1 - better - worse])) for n, worse, better in tasks]
        pairs = [pair(int(f[0]), int(f[1]), n) for n, f in flips]
        interval = paired_points([p[0] for p in pairs], [p[1] for p in pairs]).interval
        hits += interval.low <= truth <= interval.high
    assert 0.92 <= hits / trials <= 0.98


def test_95_intervals_of_bits_per_byte_hold_95_times_in_100() -> None:
    random = np.random.default_rng(13)
    hits, boot_hits, trials = 0, 0, 400
    for _ in range(trials):
        full = random.gamma(4, 100, 120)
        schedule = full * (1.005 + random.gamma(2, 0.01, 120) - 0.02)
        found = paired_change(schedule, full)
        hits += found.interval.low <= 0.5 <= found.interval.high
        boot_hits += found.bootstrap.low <= 0.5 <= found.bootstrap.high
    assert 0.92 <= hits / trials <= 0.98
    assert 0.91 <= boot_hits / trials <= 0.98


def test_a_difference_of_the_detectable_size_is_seen_four_times_in_five() -> None:
    random = np.random.default_rng(14)
    n, flip = 1200, 0.1
    size = (Z + stats.norm.ppf(0.8)) * sqrt(flip / n)
    seen = [
        paired_points(*([x] for x in pair(int(f[0]), int(f[1]), n))).p < 0.05
        for f in random.multinomial(n, [(flip - size) / 2, (flip + size) / 2, 1 - flip], size=400)
    ]
    assert 0.72 <= np.mean(seen) <= 0.86
    assert paired_points(*([x] for x in pair(60, 60, n))).detectable == pytest.approx(100 * size, rel=0.03)


def test_holm_multiplies_step_by_step_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_noise_of_random_flips_is_found_from_three_runs() -> None:
    random = np.random.default_rng(5)
    sizes, flip = (800, 400), 0.04

    def run(base: Array) -> Array:
        return np.where(random.random(len(base)) < flip, 1 - base, base)

    bases = [(random.random(n) < 0.6).astype(float) for n in sizes]
    found = statistics.noise([np.array([run(base) for _ in range(3)]) for base in bases])
    many = [100 * float(np.mean([run(base).mean() for base in bases])) for _ in range(2000)]
    assert found.error == pytest.approx(float(np.std(many)), rel=0.15)
    assert found.flip_rate == pytest.approx(2 * flip * (1 - flip), rel=0.2)
    assert found.band == pytest.approx(Z * sqrt(2) * found.error)
    assert len(found.averages) == 3


def test_repeats_that_agree_have_no_noise() -> None:
    scores = np.array([[1.0, 0.0, 1.0]] * 2)
    found = statistics.noise([scores])
    assert (found.spread, found.flip_rate, found.band) == (0, 0, 0)


def test_margin_over_chance() -> None:
    assert statistics.margin_over_chance(50, 75, 25) == pytest.approx(0.5)
    assert statistics.margin_over_chance(24, 25, 25) is None


def test_beating_chance_needs_more_than_luck() -> None:
    assert not statistics.beats_chance(np.repeat([1.0, 0.0], [28, 72]), 0.25)
    assert statistics.beats_chance(np.repeat([1.0, 0.0], [40, 60]), 0.25)


@given(SCORES)
def test_swapping_schedule_and_full_mirrors_the_difference(scores: list[tuple[bool, bool]]) -> None:
    schedule, full = np.array(scores, dtype=float).T
    there, back = paired_points([schedule], [full]), paired_points([full], [schedule])
    assert there.value == pytest.approx(-back.value)
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.high == pytest.approx(-back.interval.low)
    assert (there.p, there.better, there.worse) == pytest.approx((back.p, back.worse, back.better))


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), min_size=2, max_size=40))
def test_changes_of_bits_per_byte_undo_each_other(nats: list[tuple[float, float]]) -> None:
    schedule, full = np.array(nats).T
    there, back = paired_change(schedule, full), paired_change(full, schedule)
    assert (1 + there.value / 100) * (1 + back.value / 100) == pytest.approx(1)


@given(st.lists(st.booleans(), min_size=2, max_size=200))
def test_identical_runs_differ_by_nothing_and_say_what_could_hide(scores: list[bool]) -> None:
    items = np.array(scores, dtype=float)
    found = paired_points([items], [items])
    assert (found.value, found.p, found.better, found.worse) == (0, 1, 0, 0)
    assert found.largest_loss > 0
    assert verdict(found).startswith("no loss detectable above ")


@given(SCORES, st.data())
def test_one_more_wrong_answer_is_never_better(scores: list[tuple[bool, bool]], data: st.DataObject) -> None:
    schedule, full = np.array(scores, dtype=float).T
    item = data.draw(st.integers(0, len(full) - 1))
    worse = schedule.copy()
    worse[item] = 0
    before, after = paired_points([schedule], [full]), paired_points([worse], [full])
    assert after.value <= before.value
    assert after.interval.high <= before.interval.high + 1e-9 or after.interval.high >= 100


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrected_p_values_are_never_smaller_and_keep_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)
