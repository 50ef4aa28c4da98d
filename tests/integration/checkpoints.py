"""The models that the servers under test serve: small random DeepSeek checkpoints and the trained mini models."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sglang_moe_opt.shape_checkpoint import cache_root
from sglang_moe_opt.shapes import ShapeSpec, TensorSpec, checkpoint_shards

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {name: ROOT / "eval" / "reference_models" / "checkpoints" / name for name in ("mini-v2", "mini-v3")}
MINI_V2 = TRAINED["mini-v2"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPECIAL_IDS = 8
"""Ids below are special tokens, which random prompts leave out."""

# Six layers, so that five have experts. V3 gets the yarn embedding that its real checkpoints have.
_YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 1024,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "random-v2": {"num_hidden_layers": 6},
    "random-v3": {"num_hidden_layers": 6, "rope_scaling": _YARN},
    "random-v2-groups": {
        **{"num_hidden_layers": 6, "n_group": 8, "topk_group": 3},
        **{"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
    },
}
_SHAPES = {"random-v2": "tiny-v2", "random-v3": "tiny-v3", "random-v2-groups": "tiny-v2"}
# Weights of std 0.02 hardly let the experts speak: the full model and its top-1 would say the same.
_STD = {
    "random-v2": {"": 0.05, "mlp.gate.weight": 0.3, ".experts.": 0.2},
    "random-v3": {"": 0.05, "mlp.gate.weight": 0.1, ".experts.": 0.08},
    "random-v2-groups": {"": 0.05, "mlp.gate.weight": 0.3, ".experts.": 0.15},
}


def checkpoint(name: str) -> Path:
    """Folder of a model; skips the test where the trained one is missing."""
    if folder := TRAINED.get(name):
        if not (folder / "config.json").exists():
            pytest.skip(f"the trained checkpoint is not there: {folder}")
        return folder
    return _random_checkpoint(name)


def has_text(folder: Path) -> bool:
    """Whether the checkpoint has a tokenizer and a chat template."""
    return all((folder / file).exists() for file in TOKENIZER_FILES)


def _random_checkpoint(name: str) -> Path:
    """Write a random checkpoint once into the cache; its name carries everything it was made from."""
    config = ShapeSpec.parse(_SHAPES[name]).config("float32") | _CONFIGS[name]
    tokenizer = [MINI_V2 / file for file in TOKENIZER_FILES if (MINI_V2 / file).exists()]
    digest = hashlib.sha256(json.dumps([config, _STD[name]], sort_keys=True).encode())
    for file in tokenizer:
        digest.update(file.read_bytes())
    folder = cache_root() / f"test-{name}-{digest.hexdigest()[:8]}"
    with _lock(folder):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.{os.getpid()}")
            partial.mkdir(parents=True)
            generator = torch.Generator().manual_seed(0)
            specs = [spec for shard in checkpoint_shards(config) for spec in shard]
            tensors = {spec.name: _draw(spec, _STD[name], generator) for spec in specs}
            save_file(tensors, str(partial / "model.safetensors"), metadata={"format": "pt"})
            (partial / "config.json").write_text(json.dumps(config, indent=2))
            for file in tokenizer:
                shutil.copy(file, partial)
            partial.rename(folder)
    return folder


def _draw(spec: TensorSpec, stds: dict[str, float], generator: torch.Generator) -> torch.Tensor:
    if spec.kind == "ones":
        return torch.ones(spec.shape)
    std = [value for part, value in stds.items() if part in spec.name][-1] if spec.kind == "normal" else 0.02
    return torch.randn(spec.shape, generator=generator) * std


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
