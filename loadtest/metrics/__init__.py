"""The metrics of a load test: one file for each family, computed here and reported in many places."""

from __future__ import annotations

from loadtest.metrics import client, experts, goodput, latency, throughput
from loadtest.metrics.base import Measurement, Metric

ALL: tuple[Metric, ...] = (
    *throughput.METRICS,
    *latency.METRICS,
    *goodput.METRICS,
    *experts.METRICS,
    *client.METRICS,
)
BY_TAG: dict[str, Metric] = {metric.tag: metric for metric in ALL}

__all__ = ["ALL", "BY_TAG", "Measurement", "Metric"]
