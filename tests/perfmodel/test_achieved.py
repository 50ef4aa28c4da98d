"""What a measured step touched, by hand; what it was bound by; and where the knee is, by its closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_moe_opt.perfmodel.achieved import UNEXPLAINED, Achieved, achieve, knee, touched
from sglang_moe_opt.perfmodel.curve import make_curve
from sglang_moe_opt.perfmodel.hardware import PRESETS
from sglang_moe_opt.perfmodel.model import find_model
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import Fitted, Parameters
from sglang_moe_opt.perfmodel.roofline import decode_step
from sglang_moe_opt.perfmodel.step import REGIMES, Setup, StepTime, step_time
from sglang_moe_opt.perfmodel.work import Batch

LITE = find_model("shape:deepseek-v2-lite@5")
V3 = find_model("deepseek-v3")
ONE = Parallelism()
REAL = Fitted.default("gpu").values
EXPERT_BYTES = 3 * 2048 * 1408 * 2


def decode(tokens: float, context: float = 0.0, distinct: float | None = None) -> Batch:
    return Batch(tokens, tokens, context, False, distinct)


def test_bytes_and_operations_by_hand() -> None:
    """4 MoE layers and a dense one; latents of 512 + 64 elements; 16 heads."""
    work = touched(LITE, make_curve(LITE.shape, "na 4", na=4), ONE, decode(8, 100, distinct=25.5))
    assert work.expert_bytes == pytest.approx(4 * 25.5 * EXPERT_BYTES)
    assert work.cache_bytes == 8 * 100 * 5 * 576 * 2
    fixed = LITE.shape.weight_bytes_per_token([0] * 4)["fixed"]
    assert work.shared_bytes == pytest.approx(fixed)
    attention = 8 * 100 * 5 * 2 * 16 * (2 * 512 + 64)
    assert work.flops == pytest.approx(2 * 8 * (fixed + 4 * 4 * EXPERT_BYTES) / 2 + attention)
    assert work.distinct_experts == 25.5
    assert work.intensity == pytest.approx(work.flops / (work.shared_bytes + work.expert_bytes + work.cache_bytes))


@given(na=st.integers(0, 6), tokens=st.integers(1, 800), context=st.integers(0, 5000))
def test_the_bytes_are_those_of_the_small_roofline(na: int, tokens: int, context: int) -> None:
    distinct = 64 * (1 - (1 - na / 64) ** tokens)
    work = touched(LITE, make_curve(LITE.shape, "", na=na), ONE, decode(tokens, context))
    least = decode_step(LITE.shape, tokens=tokens, na=na, distinct_experts=distinct, context=context)
    assert work.distinct_experts == pytest.approx(distinct, rel=1e-9, abs=1e-9)
    assert work.total_bytes == pytest.approx(least.bytes, rel=1e-6)
    assert work.flops == pytest.approx(least.flops + tokens * context * 5 * 2 * 16 * 1088, rel=1e-6)


def test_devices_share_experts_but_not_the_latent_cache() -> None:
    curve, batch = make_curve(V3.shape, "full"), decode(16, 1000, distinct=100.0)
    one, eight = (touched(V3, curve, Parallelism(tp), batch) for tp in (1, 8))
    assert one.expert_bytes == pytest.approx(58 * 100 * 3 * 7168 * 2048)
    assert eight.expert_bytes == pytest.approx(one.expert_bytes / 8)
    assert eight.cache_bytes == one.cache_bytes == 16 * 1000 * 61 * 576 * 2


def test_a_pruned_model_touches_what_it_has_left() -> None:
    work = touched(LITE, make_curve(LITE.shape, "16", experts=16), ONE, decode(1000))
    assert work.distinct_experts == pytest.approx(16)


def test_rates_and_shares() -> None:
    work = touched(LITE, make_curve(LITE.shape, "full"), ONE, decode(8, 0, distinct=30.0))
    found = Achieved(work, 0.05, None, 100e9, 1e12)
    assert found.bytes_s == pytest.approx(work.total_bytes / 0.05)
    assert found.bandwidth_share == pytest.approx(work.total_bytes / 0.05 / 100e9)
    assert found.compute_share == pytest.approx(work.flops / 0.05 / 1e12)
    assert found.bound is found.shares is found.rest_s is None
    unknown = Achieved(work, 0.05)
    assert unknown.bandwidth_share is unknown.compute_share is None


@pytest.mark.parametrize(
    ("expected", "step_s", "bound"),
    [
        (StepTime(5, 3, 1, 1), 10, "memory"),
        (StepTime(3, 5, 1, 1), 10, "compute"),
        (StepTime(1, 1, 5, 3), 10, "communication"),
        (StepTime(1, 1, 3, 5), 10, "overhead"),
        (StepTime(5, 3, 1, 1), 14.9, "memory"),
        (StepTime(5, 3, 1, 1), 15.1, UNEXPLAINED),
        (StepTime(5, 3, 1, 1), 5, "memory"),  # faster than expected
    ],
)
def test_a_step_is_bound_by_what_takes_most_of_it(expected: StepTime, step_s: float, bound: str) -> None:
    work = touched(LITE, make_curve(LITE.shape, "full"), ONE, decode(8))
    found = Achieved(work, step_s, expected)
    assert found.bound == bound
    assert found.shares is not None
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares[UNEXPLAINED] == pytest.approx((step_s - expected.total_s) / step_s)


def test_a_step_as_the_model_expects_it_leaves_nothing_unexplained() -> None:
    setup, curve = Setup(V3, PRESETS["h200"], Parallelism(8)), make_curve(V3.shape, "full")
    for tokens, bound in ((1, "overhead"), (32, "memory")):
        step = step_time(setup, curve, REAL, decode(tokens, 1000))
        found = achieve(setup, curve, REAL, decode(tokens, 1000), step.total_s)
        assert found.rest_s == pytest.approx(0)
        assert found.bound == bound == step.regime
    assert found.flops_s == 1979e12  # fp8 weights


def test_counted_experts_take_the_place_of_expected_ones_in_the_step_too() -> None:
    setup, curve = Setup(LITE, PRESETS["h100"]), make_curve(LITE.shape, "full")
    ideal = Parameters(1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
    few, many = (step_time(setup, curve, ideal, decode(1, 0, distinct)).memory_s for distinct in (6.0, 40.0))
    assert many - few == pytest.approx(4 * 34 * EXPERT_BYTES / 3.35e12)


@given(reading=st.floats(0.001, 10), one=st.floats(1e-4, 0.1))
def test_the_knee_is_where_computing_takes_as_long_as_reading(reading: float, one: float) -> None:
    levels = [1, 2, 5, 17, 60, 300, 900]
    steps = [StepTime(reading, one * level) for level in levels]
    at = reading / one
    found = knee(levels, steps)
    if 1 < at < 900:
        assert found == pytest.approx(at, rel=1e-6)
    elif not 0.999 < at < 1.001 and not 899 < at < 901:
        assert found is None


def test_the_knee_is_the_last_crossing() -> None:
    """Probes drift: a single load at which computing takes longer is no knee."""
    ratios = {1: 0.5, 2: 2.0, 4: 0.5, 8: 2.0, 16: 3.0}
    found = knee(list(ratios), [StepTime(1.0, ratio) for ratio in ratios.values()])
    assert found == pytest.approx(4 * 2**0.5)
    assert knee([], []) is None
    assert knee([4], [StepTime(1.0, 2.0)]) is None
    assert knee([1, 2], [StepTime(1.0, 0.0), StepTime(1.0, 2.0)]) == 2


@given(tokens=st.integers(1, 500), tp=st.sampled_from([1, 2, 4]))
def test_a_faster_machine_moves_the_knee_the_right_way(tokens: int, tp: int) -> None:
    """More bandwidth: less reading, and so computing takes longer from fewer requests on."""
    setup = Setup(LITE, PRESETS["a800-pcie"], Parallelism(tp))
    faster = replace(setup, hardware=replace(setup.hardware, bandwidth_bytes_s=2 * setup.hardware.bandwidth_bytes_s))
    curve = make_curve(LITE.shape, "full")
    slow, fast = (step_time(one, curve, replace(REAL, overlap=1.0), decode(tokens)) for one in (setup, faster))
    assert fast.memory_s <= slow.memory_s and fast.compute_s >= slow.compute_s
    for regime in REGIMES[2:]:
        assert getattr(fast, f"{regime}_s") == getattr(slow, f"{regime}_s")
