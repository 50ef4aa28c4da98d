"""Surrogates on schedules whose scores follow a known law."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_moe_opt.search.covariance import LayerLosses
from sglang_moe_opt.search.gaussian_process import GaussianProcess, default_surrogate
from sglang_moe_opt.search.rivals import surrogates
from sglang_moe_opt.search.surrogate import Surrogate, half_width
from tests.search.synthetic_scores import LAYERS, TOP_K, grid, measure, truth

NOISE = 0.1
ALL = surrogates(LAYERS, TOP_K)


def random_tables(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, TOP_K + 1, (count, LAYERS))


@pytest.fixture(scope="module")
def fitted():
    data = measure(grid()[1], noise=NOISE)
    return default_surrogate(LAYERS, TOP_K).fit(data.tables, data.scores)


def test_the_law_is_found_for_tables_of_any_shape(fitted) -> None:
    tables = random_tables(200, seed=3)  # ragged, while the grid's are smooth in depth
    error = np.abs(fitted.mean(tables) - truth(tables))
    assert error.mean() < 0.3
    assert error.mean() < 0.25 * np.abs(truth(tables) - truth(tables).mean()).mean()


def test_the_noise_is_found(fitted) -> None:
    assert fitted.noise == pytest.approx(NOISE, rel=0.35)


def test_intervals_hold_what_they_say() -> None:
    hits = []
    for seed in range(6):
        rules, tables = grid()
        order = np.random.default_rng(seed).permutation(len(tables))
        data = measure(tables[order], [rules[i] for i in order], noise=NOISE)
        half = len(data) // 2
        found = default_surrogate(LAYERS, TOP_K).fit(data.tables[:half], data.scores[:half]).predict(data.tables[half:])
        hits.append((found.low <= data.scores[half:]) & (data.scores[half:] <= found.high))
    assert 0.90 <= np.mean(hits) <= 0.995


def test_intervals_are_wider_far_from_the_measurements() -> None:
    tables = grid()[1]
    near = tables[(tables >= 4).all(1)]
    data = measure(near, noise=NOISE)
    fitted = default_surrogate(LAYERS, TOP_K).fit(data.tables, data.scores)
    found = fitted.predict(np.array([[5] * LAYERS, [0] * LAYERS]))
    width = found.high - found.low
    assert width[1] > 2 * width[0]


def test_left_out_rows_in_closed_form_are_those_of_new_fits() -> None:
    """At the same parameters, leaving a row out is predicting it from the others."""
    data = measure(random_tables(20, seed=5), noise=NOISE)
    process = default_surrogate(LAYERS, TOP_K)
    fitted = process.fit(data.tables, data.scores)
    target = (data.scores - fitted.centre) / fitted.scale
    for row in (0, 7, 19):
        kept = np.arange(20) != row
        again = type(fitted).of(
            process, data.tables[kept], target[kept], fitted.parameters, fitted.centre, fitted.scale
        )
        assert again.mean(data.tables[[row]])[0] == pytest.approx(fitted.left_out[row], abs=1e-8)


def test_prediction_and_mean_agree_in_pieces(fitted) -> None:
    tables = random_tables(5000, seed=8)  # more than are predicted at a time
    assert np.array_equal(fitted.predict(tables).mean, fitted.mean(tables))


def test_interactions_are_used_where_they_are() -> None:
    tables = random_tables(80, seed=11)
    loss = 66 - truth(tables)
    rows = {"without": -loss, "with": -0.2 * loss**2}
    probes = random_tables(200, seed=12)
    expected = -0.2 * (66 - truth(probes)) ** 2
    errors = [
        np.abs(GaussianProcess("", LayerLosses(LAYERS, TOP_K, flag)).fit(tables, rows["with"]).mean(probes) - expected)
        for flag in (True, False)
    ]
    assert errors[0].mean() < 0.5 * errors[1].mean()
    flat = default_surrogate(LAYERS, TOP_K).fit(tables, rows["without"])
    assert np.abs(flat.mean(probes) - (truth(probes) - 66)).mean() < 0.1


@pytest.mark.parametrize("surrogate", ALL, ids=lambda surrogate: surrogate.name)
def test_every_surrogate_is_better_than_the_mean(surrogate: Surrogate) -> None:
    rules, tables = grid()
    order = np.random.default_rng(0).permutation(len(tables))
    data = measure(tables[order], [rules[i] for i in order], noise=NOISE)
    found = surrogate.fit(data.tables[:40], data.scores[:40]).predict(data.tables[40:])
    rest = data.scores[40:]
    assert np.abs(found.mean - rest).mean() < 0.6 * np.abs(rest - data.scores[:40].mean()).mean()
    assert ((found.low <= rest) & (rest <= found.high)).mean() > 0.8


@pytest.mark.parametrize("surrogate", ALL, ids=lambda surrogate: surrogate.name)
def test_scores_of_any_scale_and_sign(surrogate: Surrogate) -> None:
    data = measure(grid()[1][::2], noise=NOISE)
    probe = data.tables[:5]
    plain = surrogate.fit(data.tables, data.scores).mean(probe)
    scaled = surrogate.fit(data.tables, 1e-3 * data.scores + 7).mean(probe)
    assert scaled == pytest.approx(1e-3 * plain + 7, abs=2e-5)


@pytest.mark.parametrize("surrogate", ALL, ids=lambda surrogate: surrogate.name)
def test_too_little_to_learn_from(surrogate: Surrogate) -> None:
    tables = random_tables(8, seed=1)
    with pytest.raises(ValueError, match="measurements: got 7, allowed: at least 8"):
        surrogate.fit(tables[:7], truth(tables[:7]))
    with pytest.raises(ValueError, match="all 8 scores are 1"):
        surrogate.fit(tables, np.ones(8))
    with pytest.raises(ValueError, match="scores: 7 for 8 schedules"):
        surrogate.fit(tables, np.ones(7))


def test_concave_losses_never_pay_for_fewer_experts() -> None:
    concave = next(surrogate for surrogate in ALL if surrogate.name.startswith("concave"))
    data = measure(grid()[1], noise=1.0)
    fitted = concave.fit(data.tables, data.scores)
    low, high = random_tables(50, seed=2), random_tables(50, seed=3)
    assert (fitted.mean(np.maximum(low, high)) >= fitted.mean(low) - 1e-9).all()


def test_half_width() -> None:
    errors = np.arange(1.0, 101.0) * np.where(np.arange(100) % 2, 1, -1)
    assert half_width(errors) == 96  # the 96th of 100: (100 + 1) x 0.95 rounded up
    assert half_width(np.array([1.0, -1.0, 1.0, -1.0])) == pytest.approx(3.1824, abs=1e-3)  # Student's t, 3 degrees
