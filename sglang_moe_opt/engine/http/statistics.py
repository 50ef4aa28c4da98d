"""What the schedulers counted by profile, read from the files through which SGLang's processes share their metrics."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sglang_moe_opt.engine.metrics import metrics_enabled

_COUNTERS = {
    "sglang_moe_opt_tokens_total": "tokens",
    "sglang_moe_opt_slots_kept_total": "kept",
    "sglang_moe_opt_slots_offered_total": "offered",
}


def computed(top_k: int) -> dict[str, dict[str, Any]] | None:
    """By profile: tokens computed, by phase, and the mean number of experts they really ran with.

    What runs in full counts under ``full``, whatever the profile. None where metrics are off.
    """
    if not metrics_enabled():
        return None
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for metric in MultiProcessCollector(CollectorRegistry()).collect():
        for sample in metric.samples:
            if (name := _COUNTERS.get(sample.name)) is not None:
                key = sample.labels["phase"] if name == "tokens" else name
                sums[sample.labels["profile"]][key] += sample.value
    return {profile: _described(counts, top_k) for profile, counts in sorted(sums.items())}


def _described(counts: dict[str, float], top_k: int) -> dict[str, Any]:
    offered = counts.get("offered", 0.0)
    return {
        "tokens": {phase: int(counts.get(phase, 0)) for phase in ("prefill", "decode")},
        "mean_na": counts.get("kept", 0.0) / offered * top_k if offered else None,
    }
