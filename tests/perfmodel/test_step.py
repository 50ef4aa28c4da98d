"""Bytes, operations and seconds of a step: by hand, in the limits, and never the wrong way."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.curve import Consolidated, Curve, make_curve
from sglang_moe_opt.perfmodel.hardware import PRESETS, Hardware
from sglang_moe_opt.perfmodel.model import ServedModel, find_model
from sglang_moe_opt.perfmodel.parallel import Parallelism, all_reduce_s, largest_of
from sglang_moe_opt.perfmodel.parameters import SCALES, Parameters
from sglang_moe_opt.perfmodel.roofline import decode_step
from sglang_moe_opt.perfmodel.step import REGIMES, Setup, step_time
from sglang_moe_opt.perfmodel.work import Batch, distinct_by_layer, step_parts, weight_bytes

LITE = find_model("deepseek-v2-lite")
V3 = find_model("deepseek-v3")
IDEAL = Parameters(1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
REAL = Parameters(0.4, 0.4, 0.35, 0.3, 0.7, 3e-6, 1e-3, 15e-6, 8e-6, 0.5, graph_max_batch=160)


def decode(tokens: float, context: float = 0.0) -> Batch:
    return Batch(tokens, tokens, context, is_prefill=False)


def test_weights_of_the_public_models() -> None:
    """15.7 and 671 billion parameters."""
    lite = weight_bytes(LITE, make_curve(LITE.shape, "full"), Parallelism())
    assert lite / 2 == pytest.approx(15.7e9, rel=0.01)
    v3 = weight_bytes(V3, make_curve(V3.shape, "full"), Parallelism())
    head = 2 * 7168 * 129280 + 58 * 7168 * 256
    assert v3 - head == pytest.approx(671e9, rel=0.01)


def test_one_device_reads_what_the_roofline_says() -> None:
    """The same step by the small roofline of the benchmarks, whose cache and head are as wide as the weights."""
    curve = make_curve(LITE.shape, "na 4", na=4)
    parts = step_parts(LITE, curve, Parallelism(), decode(8, 100), 0.0)
    distinct = 64 * (1 - (1 - 4 / 64) ** 8)
    roofline = decode_step(LITE.shape, tokens=8, na=4, distinct_experts=distinct, context=100)
    rows = 26 * 8 * 4 * (3 * 2048 + 6 * 1408) * 2  # hidden states, which the roofline leaves out
    assert sum(part.moved_bytes for part in parts) == pytest.approx(roofline.bytes + rows)
    pairs = 8 * 100 * 27 * 2 * 16 * (2 * 512 + 64)  # attention's operations, too
    assert sum(part.flops for part in parts) == pytest.approx(roofline.flops + pairs)


def test_an_ideal_engine_takes_the_longer_of_reading_and_computing() -> None:
    setup = Setup(LITE, PRESETS["h100"])
    time = step_time(setup, make_curve(LITE.shape, "full"), IDEAL, decode(1))
    parts = step_parts(LITE, make_curve(LITE.shape, "full"), Parallelism(), decode(1), 0.0)
    assert time.total_s == pytest.approx(sum(part.moved_bytes for part in parts) / 3.35e12)
    assert time.regime == "memory"
    no_overlap = step_time(setup, make_curve(LITE.shape, "full"), replace(IDEAL, overlap=0), decode(1))
    assert no_overlap.compute_s == pytest.approx(sum(part.flops for part in parts) / 989e12)


def test_a_large_prefill_is_bound_by_arithmetic() -> None:
    time = step_time(Setup(LITE, PRESETS["h100"]), make_curve(LITE.shape, "full"), REAL, Batch(8192, 8, 512, True))
    assert time.regime == "compute"


def test_tensor_parallelism_splits_all_but_the_latents() -> None:
    curve = make_curve(V3.shape, "full")
    one, eight = (
        {part.name: part for part in step_parts(V3, curve, Parallelism(tp), decode(4, 1000), 0.0)} for tp in (1, 8)
    )
    latents = 61 * 7168 * (1536 + 576)
    assert eight["attention"].moved_bytes == pytest.approx((one["attention"].moved_bytes - latents) / 8 + latents)
    assert eight["cache"].moved_bytes == one["cache"].moved_bytes
    assert eight["cache"].flops == one["cache"].flops / 8
    assert eight["shared"].moved_bytes == one["shared"].moved_bytes / 8


def test_expert_parallelism_waits_for_the_fullest_group() -> None:
    curve = make_curve(V3.shape, "full")
    whole, split = (
        {part.name: part for part in step_parts(V3, curve, Parallelism(8, ep), decode(16, 0), 0.0)} for ep in (1, 8)
    )
    assert split["experts"].moved_bytes > whole["experts"].moved_bytes
    assert largest_of(8, 10.0, 0.0, 32.0) == 10
    assert largest_of(8, 30.0, 9.0, 32.0) == 32


@pytest.mark.parametrize(
    ("model", "split", "message"),
    [
        (V3, Parallelism(3), "--tp: got 3, allowed: a divisor of the model's 128 attention heads"),
        (LITE, Parallelism(32), "--tp: got 32, allowed: a divisor of the model's 16 attention heads"),
        (find_model("deepseek-v2"), Parallelism(64, 64), "--ep: got 64, allowed: a divisor of the model's 160 experts"),
        (replace(V3, num_heads=4096), Parallelism(1024), "allowed: a number that splits an expert's width"),
    ],
)
def test_devices_that_cannot_share_a_model(model: ServedModel, split: Parallelism, message: str) -> None:
    if "width" in message:
        model = replace(model, shape=replace(model.shape, moe_intermediate_size=1000))
    with pytest.raises(FieldError, match=message):
        Setup(model, PRESETS["h200"], split)


def test_memory_for_weights_and_cache_by_devices() -> None:
    """The shares that SGLang 0.4.4 takes, of what the driver reports."""
    found = {tp: Setup(V3, PRESETS["h200"], Parallelism(tp)).cache_and_weights_bytes for tp in (1, 2, 4, 8, 16)}
    whole = 143_771 * 2**20
    assert found == pytest.approx(
        {tp: share * whole for tp, share in zip(found, (0.88, 0.87, 0.85, 0.81, 0.79), strict=True)}
    )
    assert Setup(V3, PRESETS["h200"], Parallelism(8), memory_fraction=0.5).cache_and_weights_bytes == 0.5 * whole


def test_an_all_reduce_by_hand() -> None:
    hardware = Hardware("x", "gpu", 1e12, 1e14, 80e9, link_bytes_s=100e9, link_latency_s=5e-6, node_devices=4)
    assert all_reduce_s(hardware, 4, 1e6, 0.5) == pytest.approx(2 * 5e-6 + 1.5e6 / 50e9)
    assert all_reduce_s(hardware, 8, 1e6, 1.0) == pytest.approx(3 * 20e-6 + 1.75e6 / 50e9)  # over the network
    assert all_reduce_s(hardware, 1, 1e6, 1.0) == 0
    with pytest.raises(FieldError, match="stands alone"):
        all_reduce_s(replace(hardware, link_bytes_s=None), 2, 1.0, 1.0)


def test_consolidation_touches_no_more_than_its_own_experts_and_computes_all_slots() -> None:
    full, shared, three = (
        {p.name: p for p in step_parts(LITE, curve, Parallelism(), decode(16), 0.0)}["experts"]
        for curve in (
            make_curve(LITE.shape, "full"),
            make_curve(LITE.shape, "k0", consolidated=Consolidated(3)),
            make_curve(LITE.shape, "na", na=3),
        )
    )
    assert shared.flops == full.flops == 2 * three.flops
    assert three.moved_bytes < shared.moved_bytes < full.moved_bytes
    slots = 26 * 16 * 3 * (3 * 2048 + 6 * 1408) * 2
    assert shared.moved_bytes - three.moved_bytes == pytest.approx(slots)


def test_a_cap_adds_experts_and_large_steps_run_plainly() -> None:
    def distinct(shared: Consolidated | None, tokens: int, na: float = 6) -> float:
        curve = make_curve(LITE.shape, "", na=na, consolidated=shared)
        return distinct_by_layer(curve, decode(tokens), 0.0)[0][1]

    own, every = distinct(Consolidated(1), 16), distinct(None, 16)
    assert own == pytest.approx(distinct(None, 16, 1)) and own < 24 < every
    assert distinct(Consolidated(1, max_experts=24), 16) == 24
    assert distinct(Consolidated(1, max_experts=8), 16) == own, "own experts are never taken away"
    assert distinct(Consolidated(1, max_experts=64), 16) == every, "no more than the tokens want"
    assert distinct(Consolidated(1, max_batch=16), 16) == own
    assert distinct(Consolidated(1, max_batch=16), 17) == distinct(None, 17)


def test_measured_popularity_is_used() -> None:
    one = ((1.0,) * 6 + (0.0,) * 58,) * 26
    curve = Curve("mine", (6.0,) * 26, (6.0,) * 26, (64,) * 26, popularity=one)
    few, even = (
        {p.name: p for p in step_parts(LITE, c, Parallelism(), decode(64), 0.0)}["experts"].moved_bytes
        for c in (curve, make_curve(LITE.shape, "full"))
    )
    assert even - few == pytest.approx(26 * LITE.shape.expert_bytes * (64 * (1 - (58 / 64) ** 64) - 6))


def test_eager_steps_cost_more() -> None:
    setup, curve = Setup(LITE, PRESETS["a800-pcie"], Parallelism(2)), make_curve(LITE.shape, "full")
    inside, outside = (step_time(setup, curve, REAL, decode(n)).overhead_s for n in (160, 161))
    assert outside - inside == pytest.approx(LITE.kernels * 8e-6 + 15e-6)
    assert LITE.kernels == 27 * 11 + 1 * 4 + 26 * 13
    assert V3.kernels == 61 * 16 + 3 * 6 + 58 * 17


batches = st.builds(
    lambda n, context, prefill: Batch(float(n), float(n), float(context), prefill),
    st.integers(1, 1024),
    st.integers(0, 4096),
    st.booleans(),
)
setups = st.sampled_from(
    [
        Setup(LITE, PRESETS["a800-pcie"], Parallelism(2)),
        Setup(V3, PRESETS["h200"], Parallelism(8)),
        Setup(V3, PRESETS["b200"], Parallelism(8, 8)),
    ]
)


@settings(max_examples=60, deadline=None)
@given(setup=setups, batch=batches, overlap=st.floats(0, 1), skew=st.floats(0, 1.5))
def test_time_never_falls_with_work(setup: Setup, batch: Batch, overlap: float, skew: float) -> None:
    shape, parameters = setup.model.shape, replace(REAL, overlap=overlap, routing_skew=skew)

    def total_s(curve: Curve, setup: Setup = setup) -> float:
        return step_time(setup, curve, parameters, batch).total_s

    by_na = [total_s(make_curve(shape, "", na=na)) for na in range(1, shape.top_k + 1)]
    assert by_na == sorted(by_na)
    kept = [shape.top_k, shape.num_experts // 4, shape.num_experts // 2, shape.num_experts]
    by_kept = [total_s(make_curve(shape, "", experts=count)) for count in kept]
    if setup.split.ep == 1:  # few experts in groups share their slots less evenly
        assert all(b >= a * (1 - 1e-9) for a, b in pairwise(by_kept))
    device = setup.hardware
    faster = replace(setup, hardware=replace(device, bandwidth_bytes_s=2 * device.bandwidth_bytes_s))
    assert total_s(make_curve(shape, ""), faster) <= by_na[-1]
    time = step_time(setup, make_curve(shape, ""), parameters, batch)
    assert sum(time.shares[name] for name in REGIMES) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(setup=setups, batch=batches, factor=st.floats(0.01, 100))
def test_units_are_consistent(setup: Setup, batch: Batch, factor: float) -> None:
    """A clock that runs `factor` times as fast: every rate is divided, every time multiplied, and so is each result. A
    term with a wrong dimension would not follow."""
    device, curve = setup.hardware, make_curve(setup.model.shape, "full")
    rates = ("bandwidth_bytes_s", "flops_s", "fp8_flops_s", "link_bytes_s", "network_bytes_s")
    slower = {name: None if (rate := getattr(device, name)) is None else rate / factor for name in rates}
    later = {name: getattr(device, name) * factor for name in ("link_latency_s", "network_latency_s")}
    overheads = {name: getattr(REAL, name) * factor for name in SCALES if name.endswith("_s")}
    one = step_time(setup, curve, REAL, batch)
    other = step_time(
        replace(setup, hardware=replace(device, **slower, **later)), curve, replace(REAL, **overheads), batch
    )
    for regime in REGIMES:
        assert getattr(other, f"{regime}_s") == pytest.approx(factor * getattr(one, f"{regime}_s"), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(setup=setups, batch=batches, factor=st.sampled_from([2.0, 4.0]))
def test_wider_weights_are_more_bytes_and_no_more_operations(setup: Setup, batch: Batch, factor: float) -> None:
    shape = setup.model.shape
    wide = replace(setup.model, shape=replace(shape, bytes_per_param=2 * factor))
    narrow = replace(setup.model, shape=replace(shape, bytes_per_param=2.0))
    curve = make_curve(shape, "full")
    one, other = ({p.name: p for p in step_parts(m, curve, setup.split, batch, 0.3)} for m in (narrow, wide))
    for name in ("attention", "dense", "shared", "router", "head"):
        assert other[name].moved_bytes == pytest.approx(factor * one[name].moved_bytes)
        assert other[name].flops == one[name].flops
    assert other["cache"] == one["cache"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"na": 7}, "na: got 7, allowed: a number from 0 to 6"),
        ({"experts": 5}, "experts: got 5, allowed: an integer from 6 to 64"),
        ({"consolidated": Consolidated(0)}, "--consolidate: got 0"),
    ],
)
def test_curves_that_the_model_does_not_allow(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        make_curve(LITE.shape, "x", **arguments)  # type: ignore[arg-type]
