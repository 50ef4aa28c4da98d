"""Runs schedules x tasks against one server; every task is complete or resumed, nothing is asked twice."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from eval.canary import check_server
from eval.catalog import EvalTask, check_data_dir, load_tasks
from eval.endpoint import Limits, SkippingCompletions
from eval.journal import Journal
from eval.progress import RunProgress
from eval.results import Item, Manifest, ResultsFolder, ScheduleEntry
from eval.schedules import Labelled, resolve_all
from eval.served import ServedModel, connect

_PACKAGES: Final = ("sglang-moe-opt", "sglang", "lm-eval", "transformers", "torch", "datasets")


class RunError(RuntimeError):
    """A run that cannot start or go on: one line."""


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        schedules: labelled hints, in order.
        tasks: names, in order.
        out: results folder.
        data_dir: local data; None takes the Hugging Face hub.
        limit: items of each task; None is all.
        resume: go on with the run that is in `out`.
        model: folder or hub id for config and tokenizer, where the server's own path cannot be read.
        config: the server's policy file, where it does not say.
        limits: how the server is asked.
        command: the command line, for the record.
    """

    schedules: Sequence[Labelled]
    tasks: Sequence[str]
    out: Path
    data_dir: Path | None = None
    limit: int | None = None
    resume: bool = False
    model: str | None = None
    config: Path | None = None
    limits: Limits = field(default_factory=Limits)
    command: Sequence[str] = ()

    def check(self) -> None:
        """Raises RunError or CatalogError for what is wrong before any server is asked."""
        began = ResultsFolder(self.out).manifest_file.exists()
        if self.resume and not began:
            raise RunError(f"--resume: {self.out} has no manifest.json: no run began there")
        if began and not self.resume:
            raise RunError(f"--out: {self.out} holds a run already: --resume goes on with it, or name another folder")
        if self.data_dir is not None:
            check_data_dir(self.data_dir)


def evaluate(url: str, request: Request, console: Console | None = None) -> ResultsFolder:
    """Evaluate the server at `url` and return the finished folder; `console` shows canary and progress.

    Raises:
        ValueError: bad input: a schedule, a task, data.
        EndpointError, RunError: the server fails, or the folder holds another run. What was answered is kept.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    request.check()
    folder = ResultsFolder(request.out)
    served = connect(url, request.model)
    policy = served.policy(request.config)
    schedules = resolve_all(request.schedules, policy, served.shape)
    tasks = load_tasks(request.tasks, request.data_dir)
    manifest = _manifest(folder, request, served, schedules, tasks)
    canary = check_server(served, schedules, policy)
    if console is not None:
        console.print(f"canary: {canary}", highlight=False, soft_wrap=True)
    folder.write_manifest(manifest)
    weights = {task.name: _build(task, request.limit) for task in tasks}
    with RunProgress(weights, len(schedules), console) as progress:
        for schedule in schedules:
            for task in tasks:
                if folder.has_items(schedule.label, task.name):
                    progress.skip(task.name)
                    continue
                progress.enter(schedule.label, task.name)
                manifest = _run(folder, request, served, manifest, schedule, task, progress)
                progress.leave()
    return folder


def _run(
    folder: ResultsFolder,
    request: Request,
    served: ServedModel,
    manifest: Manifest,
    schedule: ScheduleEntry,
    task: EvalTask,
    progress: RunProgress,
) -> Manifest:
    """One task under one schedule; returns the manifest with the time it took, also when it was interrupted."""
    model = SkippingCompletions(
        served.url,
        schedule.hint,
        Journal(folder.partial_file(schedule.label, task.name)),
        progress,
        request.limits,
        model=served.name,
        tokenizer=served.tokenizer,
        max_length=served.context,
    )
    start = time.monotonic()
    try:
        items = score(task, model)
    finally:
        key = f"{schedule.label}/{task.name}"
        spent = manifest.seconds.get(key, 0.0) + time.monotonic() - start
        manifest = manifest.model_copy(update={"seconds": {**manifest.seconds, key: round(spent, 2)}})
        folder.write_manifest(manifest)
    folder.write_items(schedule.label, task.name, items)
    return manifest


def _build(task: EvalTask, limit: int | None) -> int:
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


def _manifest(
    folder: ResultsFolder,
    request: Request,
    served: ServedModel,
    schedules: Sequence[ScheduleEntry],
    tasks: Sequence[EvalTask],
) -> Manifest:
    """A new run's manifest, or the one in the folder if it is of this model, these schedules and tasks."""
    entries = [task.entry(request.limit) for task in tasks]
    fingerprint = served.fingerprint
    if request.resume:
        old = folder.read_manifest()
        for name, before, now in (
            ("model", old.model_fingerprint, fingerprint),
            ("schedules", old.schedules, list(schedules)),
            ("tasks", old.tasks, entries),
        ):
            if before != now:
                raise RunError(f"--resume: {folder.root}: that run has other {name}; repeat its command with --resume")
        return old
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=list(request.command),
        url=served.url,
        model=served.title,
        model_fingerprint=fingerprint,
        model_config_json=served.config,
        versions={name: found for name in _PACKAGES if (found := _version(name))},
        machine=machine(),
        git_revision=git_revision(),
        schedules=list(schedules),
        tasks=entries,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Cores, memory and processor of the client's machine."""
    model = next(
        (line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1), "system": platform.platform()}


def git_revision() -> str | None:
    """Commit of this checkout, with a + where files differ from it; None outside one."""
    place = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=place, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
