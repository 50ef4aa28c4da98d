"""One evaluation run as a folder of plain files: what was asked, what each item scored, nothing derived.

    manifest.json                   what ran: model, versions, schedules, tasks, command line
    items/SCHEDULE/TASK.jsonl       one line per item, complete or absent (written atomically)
    partial/SCHEDULE/TASK.jsonl     responses so far of a task that is not complete

Everything else in the folder (summary.json, summary.csv, plots, report.html) is made from these files alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_moe_opt.files import write_atomically

MetricKind = Literal["acc", "acc_norm", "exact_match", "bits_per_byte"]


class ResultsError(ValueError):
    """A results folder that cannot be read; the message names the file and what is wrong with it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Item(_Frozen):
    """What one item of a task scored under one schedule.

    Attributes:
        id: the item's number in its task; the same in every schedule, so that items can be paired.
        target: index of the right choice; None for tasks without choices.
        loglikelihoods: natural-log probability of each choice's continuation, or of the whole text, in that order.
        acc, acc_norm, exact_match: 0 or 1 where the task has that metric.
        nats, n_bytes: for text: minus the log-likelihood, and the UTF-8 bytes that it stands for.
        answer: the generated text of a generative task.
    """

    id: int
    target: int | None = None
    loglikelihoods: list[float] = Field(default_factory=list)
    acc: int | None = None
    acc_norm: int | None = None
    exact_match: int | None = None
    nats: float | None = None
    n_bytes: int | None = None
    answer: str | None = None


class PlanEntry(_Frozen):
    """The prune plan that a schedule ran under.

    Attributes:
        name: what results call it.
        digest: of what the plan does (PrunePlan.digest).
        num_experts: routed experts of a layer of the whole model.
        kept: experts that are left in each MoE layer, in the order of layers.
        expert_bytes, whole_expert_bytes: weights of the routed experts that are left, and of all.
        method: what made the plan, for people: criterion, merging, compensation.
        checkpoint: fingerprint of the checkpoint that was written under the plan and served; None where the plan was
            applied to the whole model's.
    """

    name: str
    digest: str
    num_experts: int
    kept: list[int]
    expert_bytes: int
    whole_expert_bytes: int
    method: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None

    @property
    def mean_kept(self) -> float:
        """Experts left in a layer, on average."""
        return sum(self.kept) / len(self.kept)

    @property
    def share(self) -> float:
        """Share of the routed experts' weights that is left."""
        return self.expert_bytes / self.whole_expert_bytes


class ScheduleEntry(_Frozen):
    """A schedule that was evaluated: its label, the hint that selects it, and what the server said it does."""

    label: str
    hint: Any
    mean_na: float
    layers: list[int] = Field(description="routed experts per MoE layer; an upper bound for dynamic schedules")
    dynamic: bool = False
    plan: PlanEntry | None = Field(default=None, description="None: the whole model")


class TaskEntry(_Frozen):
    """A task that was evaluated.

    Attributes:
        metric: the one that goes into averages (the paper's choice for this task).
        chance: score of guessing, as a share of 1; None for text.
        in_average: belongs to the paper's six-benchmark average.
        total: items in the task; items: how many of them ran.
    """

    name: str
    metric: MetricKind
    chance: float | None
    in_average: bool
    total: int
    items: int


class Manifest(_Frozen):
    """What ran, written when the run begins and completed as schedules and tasks become known.

    `model_fingerprint` is the whole model's, also where a checkpoint that was written under a plan was served.
    """

    version: Literal[1] = 1
    created: str
    command: list[str]
    url: str
    model: str
    model_fingerprint: str
    model_config_json: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    git_revision: str | None
    schedules: list[ScheduleEntry] = Field(default_factory=list)
    tasks: list[TaskEntry] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict, description="wall time by 'SCHEDULE/TASK'")


class ResultsFolder:
    """Reads and writes one run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest_file(self) -> Path:
        return self.root / "manifest.json"

    def read_manifest(self) -> Manifest:
        """Raises ResultsError where the file is missing or not a manifest."""
        if not self.manifest_file.exists():
            raise ResultsError(f"{self.root}: no manifest.json there; expected the folder of an evaluation run")
        try:
            return Manifest.model_validate_json(self.manifest_file.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            raise ResultsError(f"{self.manifest_file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def write_manifest(self, manifest: Manifest) -> None:
        write_atomically(self.manifest_file, manifest.model_dump_json(indent=2) + "\n")

    def items_file(self, schedule: str, task: str) -> Path:
        return self.root / "items" / file_name(schedule) / f"{task}.jsonl"

    def partial_file(self, schedule: str, task: str) -> Path:
        return self.root / "partial" / file_name(schedule) / f"{task}.jsonl"

    def has_items(self, schedule: str, task: str) -> bool:
        """Whether the task is complete under the schedule."""
        return self.items_file(schedule, task).exists()

    def write_items(self, schedule: str, task: str, items: Iterable[Item]) -> None:
        """Write a complete task and drop its partial responses."""
        lines = [item.model_dump_json(exclude_defaults=True) for item in items]
        write_atomically(self.items_file(schedule, task), "".join(line + "\n" for line in lines))
        self.partial_file(schedule, task).unlink(missing_ok=True)

    def read_items(self, schedule: str, task: str) -> list[Item]:
        """Raises ResultsError naming file and line where the task is missing or a line is broken."""
        file = self.items_file(schedule, task)
        if not file.exists():
            raise ResultsError(f"{file}: missing; the run is not complete (finish it with --resume)")
        items = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                items.append(Item.model_validate_json(line))
            except ValidationError as error:
                raise ResultsError(f"{file}: line {number}: {error.errors()[0]['msg']}") from None
        return items


def file_name(label: str) -> str:
    """A schedule's label as a folder name: readable, without separators."""
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", label)[:120]


def read_json(path: Path) -> Any:
    """Raises ResultsError naming the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: {error}") from None
