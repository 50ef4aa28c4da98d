"""TTFT, TPOT, ITL and E2E: mean and percentiles over the requests of a point."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from loadtest.metrics.base import Measurement, Metric, percentile
from loadtest.record import Record

PERCENTILES = (50, 90, 95, 99)
Values = Callable[[Record], Iterable[float | None]]


def _milliseconds(m: Measurement, values: Values) -> list[float]:
    return [1000 * value for r in m.answered for value in values(r) if value is not None]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _family(tag: str, name: str, values: Values, about: str) -> tuple[Metric, ...]:
    def at(q: int) -> Callable[[Measurement], float | None]:
        return lambda m: percentile(_milliseconds(m, values), q)

    return (
        Metric(f"{tag}_mean_ms", f"{name} mean", "ms", lambda m: _mean(_milliseconds(m, values)), "less", about=about),
        *(Metric(f"{tag}_p{q}_ms", f"{name} p{q}", "ms", at(q), "less", about=about) for q in PERCENTILES),
    )


METRICS = (
    *_family("ttft", "TTFT", lambda r: [r.ttft], "Time to first token: from sending to the first chunk with tokens."),
    *_family("tpot", "TPOT", lambda r: [r.tpot], "Time per output token after the first, one value for each request."),
    *_family("itl", "ITL", lambda r: r.gaps, "Inter-token latency: the times between chunks, all requests together."),
    *_family("e2e", "E2E", lambda r: [r.e2e], "From sending to the last token."),
)
