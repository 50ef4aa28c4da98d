"""What the server computed: distinct experts, slots, bytes per step and how near that is to the machine's ceiling."""

from __future__ import annotations

from statistics import fmean

from loadtest.metrics.base import Measurement, Metric, percentile
from sglang_moe_opt.perfmodel.roofline import Work, decode_step, expected_distinct_experts


def _step(m: Measurement) -> Work | None:
    """One decode step of the whole batch."""
    if m.shape is None or m.mean_na is None or m.load.concurrency is None or not m.answered:
        return None
    tokens = min([m.load.concurrency, *_batch(m)])
    distinct = m.point.server.distinct_experts
    if distinct is None:
        layers = m.kept or [m.shape.num_experts]
        distinct = fmean(expected_distinct_experts(experts, m.mean_na, tokens) for experts in layers)
    context = sum(r.input_tokens + r.output_tokens / 2 for r in m.answered) / len(m.answered)
    return decode_step(m.shape, tokens=tokens, na=m.mean_na, distinct_experts=distinct, context=context)


def _batch(m: Measurement) -> list[int]:
    """How many the server ran, where it says so: a point that queued has smaller steps."""
    return [max(m.point.server.running)] if m.point.server.running else []


def _seconds_per_step(m: Measurement) -> float | None:
    return percentile([gap for r in m.answered for gap in r.gaps], 50)


def _achieved(m: Measurement, work: str) -> float | None:
    step, seconds = _step(m), _seconds_per_step(m)
    return getattr(step, work) / seconds / 1e9 if step and seconds else None


def _share(m: Measurement, work: str, ceiling: float | None) -> float | None:
    achieved = _achieved(m, work)
    return achieved * 1e9 / ceiling if achieved is not None and ceiling else None


def _bytes_per_token(m: Measurement) -> float | None:
    step = _step(m)
    return step.bytes / 1e6 / (m.load.concurrency or 1) if step else None


METRICS = (
    Metric(
        "distinct_experts",
        "distinct experts",
        "",
        lambda m: m.point.server.distinct_experts,
        "less",
        1,
        "Experts that one MoE layer computes in one decode step, mean, counted by the server.",
    ),
    Metric(
        "slots_kept",
        "slots kept",
        "",
        lambda m: m.point.server.slots_kept,
        "",
        3,
        "Computed share of the full model's routed slots, counted by the server.",
    ),
    Metric(
        "mb_per_token",
        "MB/token",
        "MB",
        _bytes_per_token,
        "less",
        1,
        "Weights and cache that a decode step must read, shared by the tokens of its batch.",
    ),
    Metric(
        "gb_s",
        "GB/s",
        "GB/s",
        lambda m: _achieved(m, "bytes"),
        "",
        1,
        "Bytes of a decode step over the median time between tokens.",
    ),
    Metric(
        "bandwidth_share",
        "of bandwidth",
        "",
        lambda m: _share(m, "bytes", m.point.read_bandwidth),
        "",
        2,
        "GB/s over the read bandwidth measured beside the point: near 1 the step is memory-bound.",
    ),
    Metric(
        "gflop_s",
        "GFLOP/s",
        "GFLOP/s",
        lambda m: _achieved(m, "flops"),
        "",
        0,
        "Operations of a decode step over the median time between tokens.",
    ),
    Metric(
        "compute_share",
        "of peak",
        "",
        lambda m: _share(m, "flops", m.point.peak_flops),
        "",
        2,
        "GFLOP/s over the peak measured beside the point: near 1 the step is compute-bound.",
    ),
)
