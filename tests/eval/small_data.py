"""A data folder and a served model small enough for unit tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan

CHECKPOINT = Path(__file__).resolve().parents[2] / "eval" / "reference_models" / "checkpoints" / "mini-v2"


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rte_rows(count: int = 277) -> list[dict[str, Any]]:
    return [
        {"sentence1": f"The number {i} is not {i + 1}.", "sentence2": f"It is {i}.", "label": i % 2}
        for i in range(count)
    ]


def small_data(folder: Path) -> Path:
    """A folder with as many RTE items as there are officially."""
    write_rows(folder / "rte" / "validation.jsonl", rte_rows())
    return folder


def weightless_model(folder: Path) -> Path:
    """The trained model's config and tokenizer without its weights; skips where it is not there."""
    if not (CHECKPOINT / "config.json").exists():
        pytest.skip(f"no trained checkpoint at {CHECKPOINT}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, folder)
    return folder


def write_odd_plan(model: Path, file: Path) -> Path:
    """Write a plan that keeps every other expert of a model's layers."""
    shape = MoEShape.from_path(model)
    kept = tuple(range(1, shape.num_experts, 2))
    PrunePlan(
        model=fingerprint(read_config(model), model),
        num_experts=shape.num_experts,
        layers=dict.fromkeys(shape.moe_layer_ids, kept),
        method={"criterion": "odd"},
    ).save(file)
    return file
