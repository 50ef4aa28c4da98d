"""Metrics against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.folder import ClientSide, PointFile, ServerSide
from loadtest.metrics import ALL, BY_TAG, Measurement
from loadtest.metrics.goodput import is_good, parse_goodput
from loadtest.record import CUT_OFF, Record
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import decode_step
from tests.loadtest.synthetic_load import CONFIG


def point(begin: float = 0.0, end: float = 10.0, load: str = "c2", **changes: Any) -> PointFile:
    values: dict[str, Any] = {
        "arm": "full",
        "load": load,
        "round": 1,
        "started_at": "",
        "begin": begin,
        "end": end,
        "cut_off": 0,
        "server": ServerSide(),
        "client": ClientSide(processes=1, cpu_s=0.5, wall_s=2.0, lag_ms=1.0),
    }
    return PointFile(**{**values, **changes})


def record(start: float, arrivals: tuple[float, ...], tokens: int, prompt: int = 7, error: str | None = None) -> Record:
    return Record("", start, arrivals, arrivals[-1] if arrivals else 1.0, prompt, tokens, error)


def value(tag: str, measurement: Measurement) -> float | None:
    return BY_TAG[tag].derive(measurement)


def test_tags_are_unique_and_every_metric_says_how_it_is_derived() -> None:
    assert len(BY_TAG) == len(ALL)
    assert all(metric.about.endswith(".") and metric.header for metric in ALL)


def test_only_what_arrives_in_the_window_counts() -> None:
    early = record(0.0, (0.5, 1.0, 1.5, 3.0, 3.5), tokens=10)  # two tokens a chunk; those at 1.5 and 3.0 are inside
    inside = record(1.0, (0.5, 1.0), tokens=2)  # at 1.5 and 2.0; its prompt counts
    measurement = Measurement(point(begin=1.0, end=3.0), [early, inside])
    assert value("output_tok_s", measurement) == pytest.approx((4 + 2) / 2)
    assert value("input_tok_s", measurement) == pytest.approx(7 / 2)
    assert value("total_tok_s", measurement) == pytest.approx(13 / 2)
    assert value("requests_s", measurement) == pytest.approx((6 / 2) / 6)  # answers have 6 tokens on average


@pytest.mark.parametrize(("error", "failures"), [("503", 1), (CUT_OFF, 0)])
def test_tokens_of_requests_without_an_end_were_computed_too(error: str, failures: int) -> None:
    measurement = Measurement(point(end=2.0), [record(0.0, (1.0, 2.0), 2, error=error)])
    assert value("output_tok_s", measurement) == pytest.approx(1.0)
    assert value("failures", measurement) == failures
    assert value("ttft_p50_ms", measurement) is None


def test_latencies_and_their_percentiles() -> None:
    records = [record(float(i), (0.1 * i, 0.1 * i + 0.2, 0.1 * i + 0.6), 3) for i in range(1, 6)]
    measurement = Measurement(point(), records)
    assert [value(f"ttft_{q}_ms", measurement) for q in ("mean", "p50", "p90", "p99")] == pytest.approx(
        [300, 300, 460, 496]
    )
    assert value("tpot_p50_ms", measurement) == pytest.approx(300)  # 0.6 s for the two tokens after the first
    assert value("itl_mean_ms", measurement) == pytest.approx(300)
    assert value("itl_p90_ms", measurement) == pytest.approx(400)
    assert value("e2e_p50_ms", measurement) == pytest.approx(900)


def test_requests_sent_while_users_were_started_have_no_latency() -> None:
    measurement = Measurement(point(), [record(0.0, (9.0, 9.1), 2), record(2.0, (0.1, 0.2), 2)], ramp_s=1.0)
    assert value("ttft_mean_ms", measurement) == pytest.approx(100)
    assert value("requests", measurement) == 2


def test_a_single_token_has_no_time_per_token_after_it() -> None:
    measurement = Measurement(point(), [record(0.0, (0.1,), 1)])
    assert value("tpot_p50_ms", measurement) is None
    assert value("itl_p50_ms", measurement) is None


def test_goodput_counts_requests_that_meet_every_bound() -> None:
    bounds = parse_goodput("ttft:500 tpot:50")
    assert bounds == {"ttft": 500, "tpot": 50}
    good, late, slow = record(0, (0.4, 0.44), 2), record(0, (0.6, 0.64), 2), record(0, (0.4, 0.48), 2)
    assert [is_good(r, bounds) for r in (good, late, slow)] == [True, False, False]
    failed = record(0, (), 0, error="503")
    measurement = Measurement(point(end=1.0), [good, late, slow, failed], goodput_ms=bounds)
    assert value("good_share", measurement) == pytest.approx(1 / 4)
    assert value("goodput_s", measurement) == pytest.approx(3 / 3)  # three answers in a second, a third of them good
    assert value("goodput_s", Measurement(point(), [good])) is None


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:inf", "ttft:nan", "itl:5", ":5"])
def test_bad_bounds_are_named(text: str) -> None:
    with pytest.raises(FieldError, match=r"--goodput: got .* allowed: NAME:MILLISECONDS"):
        parse_goodput(text)


def test_the_roofline_is_that_of_a_decode_step_of_the_whole_batch() -> None:
    shape = MoEShape.from_config(CONFIG)
    server = ServerSide(running=[2, 2, 1], waiting=[0, 4, 0], distinct_experts=11.5, slots_kept=0.75)
    measurement = Measurement(
        point(server=server, read_bandwidth=50e9, peak_flops=1e12),
        [record(0.0, (0.1, 0.12, 0.14), tokens=3, prompt=20)],
        shape=shape,
        mean_na=6,
    )
    step = decode_step(shape, tokens=2, na=6, distinct_experts=11.5, context=21.5)
    assert value("gb_s", measurement) == pytest.approx(step.bytes / 0.02 / 1e9)
    assert value("bandwidth_share", measurement) == pytest.approx(step.bytes / 0.02 / 50e9)
    assert value("compute_share", measurement) == pytest.approx(step.flops / 0.02 / 1e12)
    assert value("mb_per_token", measurement) == pytest.approx(step.bytes / 2 / 1e6)
    assert value("distinct_experts", measurement) == 11.5
    assert [value(tag, measurement) for tag in ("running", "waiting", "client_cores")] == [2, 0, 0.25]


def test_a_pruned_server_touches_only_what_each_layer_has_left() -> None:
    shape = MoEShape.from_config(CONFIG)
    records = [record(0.0, (0.1, 0.12, 0.14), tokens=3, prompt=20)]
    kept = (64, 32, 16, 8)
    measured = Measurement(point(load="c8"), records, shape=shape, mean_na=6, kept=kept)
    distinct = [experts * (1 - (1 - 6 / experts) ** 8) for experts in kept]
    step = decode_step(shape, tokens=8, na=6, distinct_experts=sum(distinct) / 4, context=21.5)
    assert value("mb_per_token", measured) == pytest.approx(step.bytes / 8 / 1e6)
    whole = Measurement(point(load="c8"), records, shape=shape, mean_na=6)
    less = 4 * distinct[0] - sum(distinct)
    saved = (value("gb_s", whole) or 0) - (value("gb_s", measured) or 0)
    assert saved == pytest.approx(less * shape.expert_bytes / 0.02 / 1e9)
    assert value("gflop_s", whole) == value("gflop_s", measured)


@pytest.mark.parametrize("tag", ["gb_s", "bandwidth_share", "mb_per_token", "distinct_experts", "running"])
def test_what_is_not_known_is_none(tag: str) -> None:
    assert value(tag, Measurement(point(), [record(0.0, (0.1, 0.2), 2)])) is None


def test_no_metric_fails_where_nothing_was_answered() -> None:
    for records in ([], [record(0.0, (), 0, error="refused")]):
        values = [metric.derive(Measurement(point(end=0.0), records)) for metric in ALL]
        assert len(values) == len(ALL)
