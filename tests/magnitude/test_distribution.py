"""What is said of weights whose distribution is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sglang_moe_opt.magnitude.distribution import describe
from sglang_moe_opt.magnitude.weights import RouterWeights
from sglang_moe_opt.schedule import SkipSchedule
from tests.magnitude.make import SHAPE, make_weights


def weights(*layers: list[float]) -> RouterWeights:
    """Layers whose ten tokens all have these weights."""
    array = np.array([[layer] * 10 for layer in layers], np.float32)
    return RouterWeights(tuple(range(1, 1 + len(layers))), array)


def test_even_and_polarised_layers() -> None:
    even, polarised = describe(weights([0.25] * 4, [0.01, 0.97, 0.01, 0.01]))
    assert even.share_by_rank == [0.25] * 4 and not even.is_polarised
    assert (even.entropy, even.effective) == (pytest.approx(math.log(4), abs=1e-4), 4)
    assert polarised.share_by_rank == [0.97, 0.01, 0.01, 0.01] and polarised.is_polarised
    assert polarised.first_share == [0.97] * 5
    assert polarised.last_over_first[2] == pytest.approx(0.01 / 0.97, abs=1e-4)
    assert polarised.effective == pytest.approx(math.exp(-(0.97 * math.log(0.97) + 0.03 * math.log(0.01))), abs=1e-3)
    assert (polarised.mass, polarised.mean_na, polarised.na_share) == (1, 4, [0, 0, 0, 0, 1])


def test_under_a_schedule() -> None:
    shape = SHAPE.__class__(2, (1,), 4, 8, 1, True, "sigmoid")
    found = weights([0.4, 0.3, 0.2, 0.1])
    kept_mass, as_it_was = (
        describe(found, SkipSchedule(min_ratio=0.6, rescale=rescale).expand(shape))[0] for rescale in ("router", 1.0)
    )
    assert kept_mass.na_share == [0, 0, 1, 0, 0] and kept_mass.mean_na == 2
    assert kept_mass.mass == pytest.approx(1) and as_it_was.mass == pytest.approx(0.7)
    assert kept_mass.share_by_rank == as_it_was.share_by_rank
    assert kept_mass.share_by_rank[:2] == pytest.approx([4 / 7, 3 / 7], abs=1e-4)
    assert kept_mass.last_over_first[0] == pytest.approx(0.75)


def test_nothing_kept_is_worth_nothing() -> None:
    found = describe(make_weights(), SkipSchedule(na=0).expand(SHAPE))
    assert all((one.effective, one.mass, one.mean_na) == (0, 0, 0) for one in found)


def test_steeper_routers_are_worth_fewer_experts() -> None:
    effective = [one.effective for one in describe(make_weights())]
    assert effective == sorted(effective, reverse=True)
    assert all(math.isfinite(value) for one in describe(make_weights()) for value in one.share_by_rank)
