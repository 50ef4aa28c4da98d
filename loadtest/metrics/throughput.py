"""Requests and tokens per second while the load was whole."""

from __future__ import annotations

from loadtest.metrics.base import Measurement, Metric


def _per_second(number: float, m: Measurement) -> float | None:
    return number / m.seconds if m.seconds > 0 else None


def requests_per_second(m: Measurement) -> float | None:
    """By the tokens: where all requests end together, counting their ends would be off by half a round."""
    if not m.answered:
        return 0.0
    mean = sum(r.output_tokens for r in m.answered) / len(m.answered)
    return _per_second(m.tokens_in_window / mean, m) if mean else None


METRICS = (
    Metric(
        "total_tok_s",
        "total tok/s",
        "tok/s",
        lambda m: _per_second(m.prompts_in_window + m.tokens_in_window, m),
        "more",
        0,
        "Prompt and output tokens in the window over its length, as the paper counts.",
    ),
    Metric(
        "output_tok_s",
        "output tok/s",
        "tok/s",
        lambda m: _per_second(m.tokens_in_window, m),
        "more",
        0,
        "Output tokens that arrived in the window over its length.",
    ),
    Metric(
        "input_tok_s",
        "input tok/s",
        "tok/s",
        lambda m: _per_second(m.prompts_in_window, m),
        "more",
        0,
        "Prompt tokens whose first answer arrived in the window over its length.",
    ),
    Metric(
        "requests_s",
        "requests/s",
        "1/s",
        requests_per_second,
        "more",
        2,
        "Output tokens per second over the mean length of an answer.",
    ),
)
