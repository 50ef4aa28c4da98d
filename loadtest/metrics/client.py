"""What the client cost, and whether the server really ran the load."""

from __future__ import annotations

import statistics

from loadtest.metrics.base import Measurement, Metric


def _cores(m: Measurement) -> float | None:
    client = m.point.client
    return client.cpu_s / client.wall_s if client.wall_s > 0 else None


def _median(values: list[int]) -> float | None:
    return statistics.median(values) if values else None


def _peak(values: list[int]) -> float | None:
    """Neither mean nor median: while prompts are read, which takes a while, the batch is still growing."""
    return float(max(values)) if values else None


METRICS = (
    Metric(
        "running",
        "running",
        "",
        lambda m: _peak(m.point.server.running),
        "",
        0,
        "Requests in the server's batch, the most of all samples.",
    ),
    Metric("waiting", "waiting", "", lambda m: _median(m.point.server.waiting), "less", 0, "Requests queued, median."),
    Metric("client_cores", "client cores", "", _cores, "less", 2, "CPU seconds of the client per second."),
    Metric(
        "client_lag_ms",
        "client lag p99",
        "ms",
        lambda m: m.point.client.lag_ms,
        "less",
        1,
        "How much later than asked the client's event loop woke up, 99th percentile.",
    ),
)
