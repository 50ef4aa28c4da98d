"""Runs schedules x tasks against one server, or several in turn; tasks are resumed, nothing is asked twice."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from eval.canary import check_server
from eval.catalog import EvalTask, check_data_dir, load_tasks
from eval.endpoint import Limits, SkippingCompletions
from eval.journal import Journal
from eval.plans import NamedPlan, under
from eval.progress import RunProgress
from eval.results import Manifest, ResultsFolder, ScheduleEntry
from eval.schedules import Labelled, check_labels, resolve_all
from eval.scoring import build, score
from eval.served import ServedModel, connect, load_policy, read_model_config
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

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
    request.check()
    served = connect(url, request.model)
    policy = served.policy(request.config)
    schedules = served.schedules(request.schedules, policy)
    run = _Run(request, served.whole_fingerprint, schedules, console)
    run.ask(served, policy, schedules)
    return run.folder


def evaluate_plans(
    model: str,
    plans: Sequence[NamedPlan],
    serve: Callable[[NamedPlan | None], AbstractContextManager[str]],
    request: Request,
    console: Console | None = None,
) -> ResultsFolder:
    """Evaluate a model whole and under each plan, one server after another; a finished one is not started again.

    Args:
        model: folder or hub id of the whole model.
        plans: checked against the model.
        serve: starts a server, of the whole model for None, gives its URL and stops it.
        request, console: as in `evaluate`.

    Raises:
        ValueError, EndpointError, RunError: as `evaluate`.
    """
    request.check()
    config, folder = read_model_config(model), Path(model)
    shape, policy = MoEShape.from_config(config), load_policy(request.config)
    whole = resolve_all(request.schedules, policy, shape)
    servers = [(None, whole), *((plan, under(plan.entry(shape), whole)) for plan in plans)]
    schedules = [entry for _, entries in servers for entry in entries]
    run = _Run(request, fingerprint(config, folder if folder.is_dir() else None), schedules, console)
    for plan, entries in servers:
        if run.is_complete(entries):
            continue
        with serve(plan) as url:
            run.ask(connect(url).known_under(plan), policy, entries)
    return run.folder


class _Run:
    """One results folder, filled by one server or by several after one another.

    Args:
        request: what is wanted.
        model: the whole model's fingerprint.
        schedules: of all servers.
        console: shows canaries and progress; None shows nothing.

    Raises:
        ValueError, RunError: as `evaluate`, before anything is asked.
    """

    def __init__(
        self, request: Request, model: str, schedules: Sequence[ScheduleEntry], console: Console | None
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        check_labels(schedules)
        self.folder = ResultsFolder(request.out)
        self._request, self._console = request, console
        self._model, self._schedules = model, list(schedules)
        self._tasks = load_tasks(request.tasks, request.data_dir)
        self._entries = [task.entry(request.limit) for task in self._tasks]
        self._manifest = self._resumed() if request.resume else None

    def is_complete(self, schedules: Sequence[ScheduleEntry]) -> bool:
        """Whether nothing of these schedules is left to do."""
        return all(self.folder.has_items(s.label, task.name) for s in schedules for task in self._tasks)

    def ask(self, served: ServedModel, policy: Policy, schedules: Sequence[ScheduleEntry]) -> None:
        """Check the server and put to it what is missing of these schedules."""
        canary = check_server(served, schedules, policy)
        if self._console is not None:
            under = f"{served.plan.name}: " if served.plan else ""
            self._console.print(f"canary: {under}{canary}", highlight=False, soft_wrap=True)
        manifest = self._manifest or self._begun(served)
        self.folder.write_manifest(manifest)
        with RunProgress(self._weights, len(schedules), self._console) as progress:
            for schedule in schedules:
                for task in self._tasks:
                    if self.folder.has_items(schedule.label, task.name):
                        progress.skip(task.name)
                        continue
                    progress.enter(schedule.label, task.name)
                    manifest = _run(self.folder, self._request, served, manifest, schedule, task, progress)
                    progress.leave()
        self._manifest = manifest

    @cached_property
    def _weights(self) -> dict[str, int]:
        """Size of each task; its requests are made here, once for all servers."""
        return {task.name: build(task, self._request.limit) for task in self._tasks}

    def _resumed(self) -> Manifest:
        """The manifest in the folder. Raises RunError where it is of another model, other schedules or tasks."""
        old = self.folder.read_manifest()
        for name, before, now in (
            ("model", old.model_fingerprint, self._model),
            ("schedules", old.schedules, self._schedules),
            ("tasks", old.tasks, self._entries),
        ):
            if before != now:
                raise RunError(
                    f"--resume: {self.folder.root}: that run has other {name}; repeat its command with --resume"
                )
        return old

    def _begun(self, served: ServedModel) -> Manifest:
        """A new run's manifest, with the first server's address."""
        return Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=list(self._request.command),
            url=served.url,
            model=served.title,
            model_fingerprint=self._model,
            model_config_json=served.config,
            versions={name: found for name in _PACKAGES if (found := _version(name))},
            machine=machine(),
            git_revision=git_revision(),
            schedules=self._schedules,
            tasks=self._entries,
        )


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
