"""Layer costs recover a known truth, and find interactions where there are some, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_moe_opt.search.allocation import Problem
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.layer_costs import LayerCosts, Observation, fit
from sglang_moe_opt.search.sensitivity import Space

SPACE = Space(5, 1, 8)
NOISE = 2e-4


def truth(seed: int, curvature: float, neighbours: float = 0.0) -> LayerCosts:
    """Layers of unlike sensitivity whose terms fall with na as an exponential."""
    generator = np.random.default_rng(seed)
    size, rate = generator.uniform(0.02, 0.2, 5), generator.uniform(0.3, 0.7, 5)
    na = np.arange(1, 9)
    terms = size[:, None] * (np.exp(-rate[:, None] * (na - 1)) - np.exp(-rate[:, None] * 7))
    return LayerCosts(1, terms, curvature, np.full(4, neighbours) if neighbours else None)


def observed(model: LayerCosts, candidates: list[Candidate], seed: int = 0) -> list[Observation]:
    noise = np.random.default_rng(seed).normal(0, NOISE, len(candidates))
    losses = [model.predict(one.layers) for one in candidates] + noise
    return [Observation(one.layers, float(loss), NOISE) for one, loss in zip(candidates, losses, strict=True)]


@pytest.mark.parametrize("curvature", [0.0, 5.0, -2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_schedules_that_were_not_measured(seed: int, curvature: float) -> None:
    model = truth(seed, curvature)
    mixes = SPACE.mixes(60, (20, 20), "router", seed)
    found = fit(observed(model, [*SPACE.singles("router"), *mixes[:40]]), 1, 8)
    for one in mixes[40:]:
        assert found.predict(one.layers) == pytest.approx(model.predict(one.layers), rel=0.05, abs=5 * NOISE)


@pytest.mark.parametrize(("curvature", "sign"), [(6.0, 1), (0.0, 0)])
def test_curvature_is_found_where_there_is_one(curvature: float, sign: int) -> None:
    model = truth(0, curvature)
    found = fit(observed(model, [*SPACE.singles("router"), *SPACE.mixes(40, (20, 20), "router", 0)]), 1, 8)
    assert np.sign(found.curvature) == sign


def test_neighbours_are_found_where_there_are_some() -> None:
    model = truth(1, 0.0, neighbours=8.0)
    candidates = [*SPACE.singles("router"), *SPACE.mixes(80, (12, 26), "router", 0)]
    found = fit(observed(model, candidates), 1, 8)
    assert found.neighbours is not None
    plain = fit(observed(truth(1, 0.0), candidates), 1, 8)
    assert plain.neighbours is None


@pytest.mark.parametrize("seed", range(5))
def test_its_best_schedule_is_as_good_as_the_true_best(seed: int) -> None:
    model = truth(seed, 3.0)
    found = fit(observed(model, [*SPACE.singles("router"), *SPACE.mixes(40, (20, 20), "router", seed)]), 1, 8)
    weights = np.tile(np.arange(1.0, 9), (5, 1))
    chosen = Problem(found.levels, found.terms, found.pairs, weights).best(20)[0]
    best = Problem(model.levels, model.terms, None, weights).best(20)[0]
    assert model.predict(chosen.layers) <= model.predict(best.layers) * 1.03 + NOISE


def test_terms_fall_with_na_to_zero() -> None:
    found = fit(observed(truth(0, 0.0), SPACE.singles("router")), 1, 8)
    assert (np.diff(found.terms, axis=1) <= 0).all()
    assert (found.terms[:, -1] == 0).all()
    assert found.curvature == 0.0
    assert np.isnan(found.error)


def test_levels_that_were_not_measured_lie_between_their_neighbours() -> None:
    model = truth(0, 0.0)
    some = [one for one in SPACE.singles("router") if min(one.layers) in (1, 3, 5, 7)]
    found = fit(observed(model, some), 1, 8)
    for layer in range(5):
        for na in range(1, 8):
            layers = [8] * 5
            layers[layer] = na
            assert found.predict(layers) == pytest.approx(model.predict(layers), rel=0.25, abs=5 * NOISE)


def test_nothing_measured_and_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        fit([], 1, 8)
    with pytest.raises(ValueError, match="1 to 8 experts"):
        fit([Observation((9, 8), 0.1, 0.0)], 1, 8)
