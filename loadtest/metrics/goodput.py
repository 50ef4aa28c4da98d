"""Failures, and goodput: requests that met every bound of the service-level objective."""

from __future__ import annotations

from collections.abc import Mapping

from loadtest.metrics.base import Measurement, Metric
from loadtest.metrics.throughput import requests_per_second
from loadtest.record import Record
from sglang_moe_opt.fields import FieldError

BOUNDS = ("ttft", "tpot", "e2e")


def parse_goodput(text: str) -> dict[str, float]:
    """`ttft:500 tpot:50` as milliseconds. Raises FieldError."""
    bounds: dict[str, float] = {}
    for part in text.split():
        name, _, value = part.partition(":")
        try:
            bound = float(value)
        except ValueError:
            bound = 0.0
        if name not in BOUNDS or not 0 < bound < float("inf"):
            raise FieldError("--goodput", part, f"NAME:MILLISECONDS with NAME one of {', '.join(BOUNDS)}")
        bounds[name] = bound
    return bounds


def is_good(record: Record, goodput_ms: Mapping[str, float]) -> bool:
    """Whether it was answered within every bound; a single token has no TPOT and meets any."""
    values = {"ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e}
    return record.ok and all((values[name] or 0.0) * 1000 <= bound for name, bound in goodput_ms.items())


def _share(m: Measurement) -> float | None:
    sent = [*m.answered, *(r for r in m.records if not r.ok)]
    if not m.goodput_ms or not sent:
        return None
    return sum(is_good(r, m.goodput_ms) for r in sent) / len(sent)


def _goodput(m: Measurement) -> float | None:
    answered = requests_per_second(m)
    if not m.goodput_ms or answered is None:
        return None
    return answered * sum(is_good(r, m.goodput_ms) for r in m.answered) / max(1, len(m.answered))


METRICS = (
    Metric("goodput_s", "goodput", "1/s", _goodput, "more", 2, "Requests per second that met every bound."),
    Metric("good_share", "good", "", _share, "more", 3, "Share of the requests sent that met every bound."),
    Metric("requests", "requests", "", lambda m: float(len(m.records)), "", 0, "Requests sent."),
    Metric("failures", "failures", "", lambda m: float(len(m.failed)), "less", 0, "Requests that failed."),
)
