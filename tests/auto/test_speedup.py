"""What a level gains, by batch size and by how many of the tokens opted in."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.auto import SpeedModel
from sglang_moe_opt.auto.speedup import PREDICTED_AT, interpolate, predict
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import Machine
from sglang_moe_opt.schedule import SkipSchedule
from sglang_moe_opt.shapes import ShapeSpec
from tests.auto.curves import FAST, MODEL

SHAPE = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())


def test_between_measured_batch_sizes_the_logarithm_counts() -> None:
    assert [interpolate(FAST, tokens) for tokens in (1, 8, 64)] == [1.5, 1.68, 1.13]
    assert interpolate(((4, 1.2), (16, 1.6)), 8) == pytest.approx(1.4)
    assert [interpolate(((4, 1.2), (16, 1.6)), tokens) for tokens in (1, 1000)] == [1.2, 1.6]
    assert interpolate(((4, 1.3),), 7) == 1.3


def test_when_all_opt_in_the_speeds_are_the_measured_ones() -> None:
    assert MODEL.speeds(8, 8) == pytest.approx([1.0, 1.24, 1.68])
    assert MODEL.speeds(64, 64) == pytest.approx([1.0, 1.11, 1.13])


def test_speeds_are_relative_to_the_first_level() -> None:
    without_full = SpeedModel(MODEL.curves[1:], MODEL.na[1:], 6, 64)
    assert without_full.speeds(8, 8) == pytest.approx([1.0, 1.68 / 1.24])


def test_a_few_who_opted_in_save_no_expert_that_the_others_read() -> None:
    """Half of 32 tokens: the others touch 79 % of the experts, so that much less than half is saved."""
    whole, half = (1 - 1 / MODEL.speeds(32, opted)[2] for opted in (32, 16))
    assert 0 < half < 0.3 * whole
    first, cheaper = 1 - 6 / 64, 1 - 2 / 64
    distinct = (first**16 * cheaper**16 - first**32) / (cheaper**32 - first**32)
    assert half == pytest.approx(whole * distinct)  # at this size reading explains all of it


def test_what_reading_cannot_explain_is_saved_by_every_token() -> None:
    """At 512 tokens every expert is read whatever the schedule: a gain there is arithmetic."""
    model = SpeedModel((((1, 1.0),), ((1, 1.25),)), (6.0, 2.0), 6, 64)
    assert model.speeds(512, 128)[1] == pytest.approx(1 / (1 - 0.2 / 4), rel=1e-3)


@given(st.integers(1, 2048), st.data())
def test_more_tokens_that_opt_in_never_gain_less(tokens: int, data: st.DataObject) -> None:
    opted = data.draw(st.integers(1, tokens))
    some, all_ = MODEL.speeds(tokens, opted), MODEL.speeds(tokens, tokens)
    for one, other in zip(some, all_, strict=True):
        assert math.isfinite(one) and 1 - 1e-9 <= one <= other + 1e-9
        assert 1 - 1 / one <= (1 - 1 / other) * opted / tokens + 1e-9  # at best in proportion


def test_a_level_that_is_slower_stays_so() -> None:
    slow = SpeedModel((((1, 1.0),), ((1, 0.8),)), (6.0, 2.0), 6, 64)
    assert slow.speeds(4, 4) == pytest.approx([1.0, 0.8])
    assert slow.best(4, 4, 1.0) == 0


def test_models_that_use_all_their_experts() -> None:
    dense = SpeedModel((((1, 1.0),), ((1, 1.5),)), (8.0, 4.0), 8, 8)
    assert dense.speeds(1, 1)[1] == pytest.approx(1.5)
    assert 1 <= dense.speeds(2, 1)[1] <= 1.5


def test_the_gentlest_level_that_none_beats_by_min_gain() -> None:
    assert [MODEL.best(tokens, tokens, 1.03) for tokens in (1, 8, 32, 64, 500)] == [2, 2, 2, 1, 1]
    assert MODEL.best(64, 64, 1.0) == 2
    assert MODEL.best(64, 64, 1.2) == 0
    assert MODEL.best(8, 8, 1.4) == 1
    assert MODEL.best(64, 1, 1.03) == 0  # one of 64 gains nothing


@given(st.integers(1, 1024), st.floats(1, 2))
def test_never_slower_than_the_fastest_level_by_more_than_min_gain(tokens: int, min_gain: float) -> None:
    speeds = MODEL.speeds(tokens, tokens)
    assert speeds[MODEL.best(tokens, tokens, min_gain)] * min_gain >= max(speeds) * (1 - 1e-12)


def test_a_roofline_predicts_the_hump_of_a_memory_bound_machine() -> None:
    table = SkipSchedule(na=2).expand(SHAPE)
    curve = dict(predict(SHAPE, table, Machine(read_bandwidth=2e12, peak_flops=600e12), context=1024))
    assert tuple(curve) == PREDICTED_AT
    assert curve[8] > curve[1] > 1 and curve[8] > curve[64] > curve[256]
    same = predict(SHAPE, SkipSchedule().expand(SHAPE), Machine(1e9, 1e12), context=1)
    assert {factor for _, factor in same} == {1.0}
