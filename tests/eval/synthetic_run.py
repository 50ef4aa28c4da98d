"""Results folders with known effects, for tests of what is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.plans import under
from eval.results import Item, Manifest, MetricKind, PlanEntry, ResultsFolder, ScheduleEntry, TaskEntry

LAYERS = 7
TASKS: dict[str, tuple[MetricKind, float | None, bool, int]] = {
    "arc_easy": ("acc", 0.25, True, 600),
    "arc_challenge": ("acc_norm", 0.25, True, 300),
    "boolq": ("acc", 0.5, True, 800),
    "openbookqa": ("acc_norm", 0.25, True, 250),
    "rte": ("acc", 0.5, True, 277),
    "winogrande": ("acc", 0.5, True, 400),
    "cloze": ("acc", 0.25, False, 500),
    "bits_per_byte": ("bits_per_byte", None, False, 200),
}
"""Name: metric, chance, in the average, items."""

FEW_SCHEDULES: dict[str, Any] = {
    "full": "full",
    "na=4": {"na": 4},
    "na=2": {"na": 2},
    "na=1": {"na": 1},
    "6,4,2,7": {"layers": [6, 6, 5, 5, 4, 3, 2]},
    "2,4,6,7": {"layers": [2, 3, 3, 4, 5, 5, 6]},
    "adaptive": {"min_ratio": 0.2},
}


def write_run(
    root: Path,
    schedules: Mapping[str, Any] = FEW_SCHEDULES,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    flips: float = 0.0,
    seed: int = 0,
    fingerprint: str = "0123456789abcdef",
    plans: Sequence[PlanEntry] = (),
    whole: bool = True,
) -> ResultsFolder:
    """A complete run of the whole model, if wanted, and under each plan.

    Fewer experts lose more, descending schedules less; `flips` is the share of random flips.
    """
    folder = ResultsFolder(root)
    own = [_entry(label, hint) for label, hint in schedules.items()]
    entries = [*(own if whole else ()), *(entry for plan in plans for entry in under(plan, own))]
    folder.write_manifest(
        Manifest(
            created="2026-01-02T03:04:05+00:00",
            command=["moe-opt", "eval", "--profiles", "full,na=4", "--config", "a policy.yaml"],
            url="http://localhost:30000",
            model="mini-v2 <test>",
            model_fingerprint=fingerprint,
            model_config_json={"model_type": "deepseek_v2"},
            versions={"sglang": "0.5.23", "lm-eval": "0.4.13"},
            machine={"cpu": "a CPU & more", "cores": 2},
            git_revision="abc1234",
            schedules=entries,
            tasks=[_task(name) for name in tasks],
            seconds={f"{label}/{task}": 1.5 for label in (entry.label for entry in entries) for task in tasks},
        )
    )
    for number, entry in enumerate(entries):
        for name in tasks:
            noise = np.random.default_rng([seed, number, len(name)])
            folder.write_items(entry.label, name, _items(name, _loss(entry), flips, noise))
    return folder


def plan_entry(name: str, kept: int, **method: Any) -> PlanEntry:
    """Keeps `kept` experts of 64 in every layer, a thousand bytes each."""
    return PlanEntry(
        name=name,
        digest=f"{name} {kept}",
        num_experts=64,
        kept=[kept] * LAYERS,
        expert_bytes=1000 * kept * LAYERS,
        whole_expert_bytes=64000 * LAYERS,
        method=method,
    )


PLANS = (
    plan_entry("reap-48", 48, criterion="reap", keep=48),
    plan_entry("reap-16", 16, criterion="reap", keep=16),
    plan_entry("merged <16>", 16, criterion="reap", merge="average", merge_by="output"),
)
PLAN_SCHEDULES = {"full": "full", "na=4": {"na": 4}}


def _entry(label: str, hint: Any) -> ScheduleEntry:
    rule = hint if isinstance(hint, dict) else {}
    layers = rule.get("layers", [rule.get("na", 6)] * LAYERS)
    return ScheduleEntry(
        label=label, hint=hint, mean_na=float(np.mean(layers)), layers=layers, dynamic="min_ratio" in rule
    )


def _task(name: str) -> TaskEntry:
    metric, chance, in_average, items = TASKS[name]
    return TaskEntry(name=name, metric=metric, chance=chance, in_average=in_average, total=items, items=items)


def _loss(entry: ScheduleEntry) -> float:
    depth = np.linspace(1.6, 0.4, LAYERS)
    pruned = 2 * (1 - entry.plan.share) ** 3 if entry.plan else 0.0
    return float(np.mean(depth * ((6 - np.array(entry.layers)) / 5.0) ** 2)) + 0.02 * entry.dynamic + pruned


def _items(name: str, loss: float, flips: float, noise: np.random.Generator) -> list[Item]:
    """Item by item, each with the same difficulty in every schedule."""
    metric, chance, _, n = TASKS[name]
    difficulty = np.random.default_rng(len(name) + n)
    if metric == "bits_per_byte":
        n_bytes = difficulty.integers(400, 1400, n)
        nats = n_bytes * difficulty.uniform(0.9, 1.2, n)
        nats *= 1 + 0.03 * loss * difficulty.uniform(0.5, 1.5, n)
        return [Item(id=i, nats=float(nats[i]), n_bytes=int(n_bytes[i])) for i in range(n)]
    margin = difficulty.uniform(-0.45, 0.55, n) + (chance or 0.0) / 4
    right = (margin - 0.15 * loss * difficulty.uniform(0, 2, n) > 0) ^ (noise.random(n) < flips)
    scores = right.astype(int)
    return [Item(id=i, target=0, loglikelihoods=[-1.0, -2.0], **{metric: int(scores[i])}) for i in range(n)]
