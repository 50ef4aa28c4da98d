"""The tasks of an evaluation: their YAML files, and their items from the Hugging Face hub or from a local folder.

A local folder is laid out TASK/SPLIT.jsonl. Every line is checked before lm-eval sees it: an error names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from eval.heldout import cloze_items, gloss_items, load_heldout, next_word_items, second_half_items, text_items
from eval.reference_models.sources import Document
from eval.results import MetricKind, TaskEntry
from sglang_moe_opt.fields import FieldError, show

TASKS_DIR: Final = Path(__file__).parent / "tasks"
SIX: Final = ("arc_challenge", "arc_easy", "boolq", "openbookqa", "rte", "winogrande")
"""The benchmarks whose mean is the paper's average."""
HELDOUT: Final[dict[str, Callable[[Sequence[Document]], Sequence[Any]]]] = {
    "bits_per_byte": text_items,
    "cloze": cloze_items,
    "gloss": gloss_items,
    "next_word": next_word_items,
}
"""Tasks that are built from held-out text."""
BY_NAME: Final[dict[str, Callable[[Sequence[Document]], Sequence[Any]]]] = {
    "bits_per_byte_second_half": second_half_items,
}
"""More of these, in no group: each is part of another one, for what was chosen on the rest of the text."""
BUILT: Final = HELDOUT | BY_NAME
ALL: Final = (*SIX, *HELDOUT)
GROUPS: Final = {"six": SIX, "heldout": tuple(HELDOUT), "all": ALL}

FieldType = Literal["text", "integer", "object"]
_TYPES: Final[dict[FieldType, type]] = {"text": str, "integer": int, "object": dict}


class CatalogError(ValueError):
    """Data that cannot be used: one line with the file, the line's number and what is wrong."""


class TaskInfo(BaseModel):
    """What a task's YAML says under `metadata`, beside lm-eval's own keys.

    score: the metric that goes into averages. chance: score of guessing, None for text. items: what the official split
    has. fields: of every row. heldout: the items are built from held-out text instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: float
    score: MetricKind
    chance: float | None
    in_average: bool
    items: int | None = None
    fields: dict[str, FieldType] = {}
    heldout: bool = False


class EvalTask:
    """One task with its items loaded: lm-eval's own task object and what our reports need beside it."""

    def __init__(self, name: str, info: TaskInfo, task: Any) -> None:
        self.name = name
        self.info = info
        self.task = task

    @property
    def total(self) -> int:
        """Items there are."""
        return len(self.task.eval_docs)

    def entry(self, limit: int | None) -> TaskEntry:
        """The task as the manifest records it."""
        info = self.info
        items = self.total if limit is None else min(limit, self.total)
        return TaskEntry(
            name=self.name,
            metric=info.score,
            chance=info.chance,
            in_average=info.in_average,
            total=self.total,
            items=items,
        )


def parse_tasks(text: str) -> tuple[str, ...]:
    """Names and groups separated by commas, without repeats. Raises FieldError."""
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if part not in (*ALL, *BY_NAME, *GROUPS):
            raise FieldError("--tasks", part, ", ".join((*ALL, *BY_NAME, *GROUPS)))
        names += [name for name in GROUPS.get(part, (part,)) if name not in names]
    return tuple(names)


def load_tasks(names: Sequence[str], data_dir: Path | None = None) -> list[EvalTask]:
    """Load tasks in the order of `names`; from the hub where there is no folder. Raises CatalogError."""
    if data_dir is None and (built := [name for name in names if name in BUILT]):
        raise CatalogError(f"--tasks: {', '.join(built)}: built from held-out text, which needs --data-dir")
    if data_dir is not None:
        check_data_dir(data_dir)
    return [load_task(name, data_dir) for name in names]


def load_task(name: str, data_dir: Path | None = None) -> EvalTask:
    """Load one task. Raises CatalogError where its data is missing, broken or not the official split."""
    from lm_eval.api.task import ConfigurableTask

    config = read_config(name)
    info = TaskInfo.model_validate(config.pop("metadata"))
    if data_dir is not None:
        split = config.get("test_split") or config["validation_split"]
        rows = heldout_rows(name, data_dir) if info.heldout else local_rows(data_dir / name / f"{split}.jsonl", info)
        for key in ("dataset_path", "dataset_name"):
            config.pop(key, None)
        config["custom_dataset"] = _dataset(split, rows)
    try:
        task = EvalTask(name, info, ConfigurableTask(config=config))
    except (OSError, ValueError) as error:  # the hub cannot be reached, or has no such dataset
        if data_dir is not None:
            raise
        reason = " ".join(str(error).split())
        raise CatalogError(
            f"{config['dataset_path']}: not available from the Hugging Face hub ({reason}); use --data-dir"
        ) from None
    _check_count(config.get("dataset_path", name), info, task.total)
    return task


def read_config(name: str) -> dict[str, Any]:
    """The YAML of a task as lm-eval takes it, and `metadata`."""
    config: dict[str, Any] = yaml.safe_load((TASKS_DIR / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def check_data_dir(folder: Path) -> None:
    """Raises CatalogError unless the folder is there and has something in it."""
    if not folder.is_dir():
        raise CatalogError(f"--data-dir: {folder}: no such folder")
    if not any(folder.iterdir()):
        raise CatalogError(f"--data-dir: {folder}: is empty; expected TASK/SPLIT.jsonl, such as arc_easy/test.jsonl")


def local_rows(file: Path, info: TaskInfo) -> list[dict[str, Any]]:
    """The rows of a task's file, each checked. Raises CatalogError naming file and line."""
    if not file.exists():
        raise CatalogError(f"{file}: no such file")
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            text = show(line.decode("utf-8", "replace"))
            raise CatalogError(f"{file}: line {number}: not JSON ({error}): {text}") from None
        _check_row(f"{file}: line {number}", row, info)
        rows.append(row)
    _check_count(str(file), info, len(rows))
    return rows


def heldout_rows(name: str, data_dir: Path) -> list[dict[str, Any]]:
    """The items of a held-out task as rows. Raises CatalogError where a corpus is missing."""
    try:
        documents = _documents(data_dir)
    except OSError as error:
        raise CatalogError(f"{error.filename}: no such file; task {name} is built from the corpora") from None
    return [asdict(item) for item in BUILT[name](documents)]


@cache
def _documents(data_dir: Path) -> list[Document]:
    return load_heldout(data_dir)


def _dataset(split: str, rows: list[dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    import datasets

    data = {split: datasets.Dataset.from_list(rows)}
    return lambda **_: data


def _check_row(place: str, row: Any, info: TaskInfo) -> None:
    if not isinstance(row, dict):
        raise CatalogError(f"{place}: {show(row)}: expected an object")
    for field, kind in info.fields.items():
        if not isinstance(row.get(field), _TYPES[kind]):
            found = show(row[field]) if field in row else "nothing"
            raise CatalogError(f"{place}: field {field}: got {found}, allowed: {kind}")
    if "choices" in info.fields and row["answerKey"].strip() not in row["choices"].get("label", ()):
        raise CatalogError(f"{place}: field answerKey: got {show(row['answerKey'])}, allowed: one of choices.label")


def _check_count(place: str, info: TaskInfo, count: int) -> None:
    if info.items is not None and count != info.items:
        raise CatalogError(f"{place}: {count} items, but the official split has {info.items}")
