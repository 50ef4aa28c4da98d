"""A task's requests, and from their answers to items scored with lm-eval's own metrics."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from typing import Any

from eval.catalog import EvalTask
from eval.results import Item


def build(task: EvalTask, limit: int | None) -> int:
    """Make the task's requests, once for all schedules; returns their size in characters."""
    with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's own bar
        task.task.build_all_requests(limit=limit, rank=0, world_size=1)
    return sum(len(text) for instance in task.task.instances for text in instance.args if isinstance(text, str))


def score(task: EvalTask, model: Any) -> list[Item]:
    """Put a task's requests to an lm-eval model and score each item with lm-eval's own metrics."""
    instances = task.task.instances
    by_type: dict[str, list[Any]] = defaultdict(list)
    for instance in instances:
        by_type[instance.request_type].append(instance)
    for kind, group in by_type.items():
        for instance, answer in zip(group, getattr(model, kind)(group), strict=True):
            instance.resps = [answer]
            instance.filtered_resps = {}
    task.task.apply_filters()
    by_item: dict[int, list[Any]] = defaultdict(list)
    for instance in instances:
        by_item[instance.doc_id].append(instance)
    return [_item(task, number, sorted(group, key=lambda one: one.idx)) for number, group in sorted(by_item.items())]


def _item(task: EvalTask, number: int, group: list[Any]) -> Item:
    (name,) = group[0].filtered_resps
    answers = [instance.filtered_resps[name] for instance in group]
    metrics = task.task.process_results(group[0].doc, answers)
    kind = task.task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        loglikelihood, n_bytes = metrics["bits_per_byte"]
        return Item(id=number, loglikelihoods=[loglikelihood], nats=-loglikelihood, n_bytes=n_bytes)
    scores = {key: int(metrics[key]) for key in ("acc", "acc_norm", "exact_match") if key in metrics}
    if kind == "generate_until":
        return Item(id=number, answer=group[0].resps[0], **scores)
    target = task.task.doc_to_text(group[0].doc) if task.task.multiple_input else task.task.doc_to_target(group[0].doc)
    return Item(id=number, target=target, loglikelihoods=[answer[0] for answer in answers], **scores)
