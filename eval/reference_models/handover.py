"""An unfinished run in a form that can be committed: weights in bfloat16 and the log, a quarter of a checkpoint.

The optimisers start anew from it: their state is a running mean over some twenty steps.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from eval.reference_models.checkpoint import Checkpoint
from eval.reference_models.export import FP32_SUFFIX, write_json

LOG_NAME = "log.jsonl"
_WEIGHTS, _STATE = "weights.safetensors", "state.json"


def pack(run_dir: Path, folder: Path) -> int:
    """Write the run's newest checkpoint and its log to ``folder``; returns the tokens seen.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    checkpoint = Checkpoint.load(run_dir)
    if checkpoint is None:
        raise FileNotFoundError(f"no training checkpoint in {run_dir}; run: train")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.to(torch.float32 if name.endswith(FP32_SUFFIX) else torch.bfloat16).contiguous()
        for name, value in checkpoint.model.items()
    }
    save_file(weights, folder / f"{_WEIGHTS}.part")
    (folder / f"{_WEIGHTS}.part").replace(folder / _WEIGHTS)
    shutil.copy(run_dir / LOG_NAME, folder / LOG_NAME)
    write_json(folder / _STATE, {"tokens": checkpoint.tokens, "recipe": checkpoint.recipe})
    return checkpoint.tokens


def unpack(folder: Path, run_dir: Path) -> Checkpoint | None:
    """The checkpoint that `pack` left in ``folder``, without optimiser state; copies the log into the run's folder."""
    if not (folder / _STATE).exists():
        return None
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    shutil.copy(folder / LOG_NAME, run_dir / LOG_NAME)
    weights = {name: value.float() for name, value in load_file(folder / _WEIGHTS).items()}
    return Checkpoint(state["tokens"], state["recipe"], weights, None)
