"""Each layer's loss by having fewer experts, measured: one layer pruned at a time, all others whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.files import read_json, write_atomically
from sglang_moe_opt.pruning.distillation import Recipe, divergence, split_rows
from sglang_moe_opt.pruning.student import load_teacher, make_student

ROW_TOKENS = 512
MICRO_ROWS = 4
UNIT = "KL divergence from the full model, nats per token"

Choices = Mapping[int, Mapping[int, Sequence[int]]]
"""Layer id -> number of experts -> the ids it would keep."""


def measure(
    model: Path,
    choices: Choices,
    pieces: Sequence[Any],
    *,
    state: Path,
    identity: Mapping[str, Any],
    device: str = "cpu",
    report: Callable[[int, int, float], None] = lambda layer, count, loss: None,
) -> dict[int, dict[int, float]]:
    """Mean KL(full || pruned) over the text, in nats per token, for every layer and count of `choices`.

    Args:
        model: folder of the full model, DeepSeek V2 or V3, unquantised.
        choices: what each layer would keep.
        pieces: texts as token ids; at least two rows of ROW_TOKENS in all.
        state: file of what is measured, from which an interrupted run goes on; it is left there at the end.
        identity: what decides the result; a state with another one is refused.
        device: of torch; beyond the CPU products are in bfloat16.
        report: called with layer id, count and loss.

    Raises:
        ValueError: a broken checkpoint, another architecture, too little text, a state of another run.
    """
    losses = _load(state, identity, choices)
    teacher = load_teacher(model, torch.float32 if device == "cpu" else torch.bfloat16, device)
    rows = torch.cat(split_rows(pieces, Recipe(row_tokens=ROW_TOKENS), teacher.device))
    for layer, by_count in choices.items():
        for count, kept in by_count.items():
            if count not in losses[layer]:
                student = make_student(teacher, model, {layer: kept}, None)
                losses[layer][count] = divergence(teacher, student, rows, MICRO_ROWS)
                write_atomically(state, json.dumps({"identity": identity, "losses": losses}))
            report(layer, count, losses[layer][count])
    return losses


def _load(state: Path, identity: Mapping[str, Any], choices: Choices) -> dict[int, dict[int, float]]:
    losses: dict[int, dict[int, float]] = {layer: {} for layer in choices}
    if not state.exists():
        return losses
    found = read_json(state, "state")
    if not isinstance(found, dict) or found.get("identity") != json.loads(json.dumps(identity)):
        raise FieldError(
            str(state), "an unfinished run with other arguments", "finish it with those, or delete that file"
        )
    for layer, by_count in found["losses"].items():
        losses[int(layer)] = {int(count): float(loss) for count, loss in by_count.items()}
    return losses
