"""A checkpoint of two MoE layers in two files, small enough to be written for each test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.engine.pruning import Pruning
from sglang_moe_opt.plan import PrunePlan, SidecarFile
from sglang_moe_opt.shapes import ShapeSpec

EXPERTS, HIDDEN, INNER = 8, 4, 2
LAYERS = (1, 2)
PARTS = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
Layers = dict[int, tuple[int, ...]]


def config(**changed: Any) -> dict[str, Any]:
    """Three layers, the first of them dense; groups of two experts."""
    own = {"num_hidden_layers": 3, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2}
    return ShapeSpec.parse("tiny-v3").config() | own | changed


def tensors() -> dict[str, Tensor]:
    """Every routed expert, gate and shared expert, each with values of its own."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = {"model.embed_tokens.weight": normal(8, HIDDEN)}
    for layer in LAYERS:
        mlp = f"model.layers.{layer}.mlp"
        made[f"{mlp}.gate.weight"] = normal(EXPERTS, HIDDEN)
        made[f"{mlp}.gate.e_score_correction_bias"] = normal(EXPERTS)
        for part, shape in PARTS.items():
            made[f"{mlp}.shared_experts.{part}.weight"] = normal(*shape)
            for expert in range(EXPERTS):
                made[f"{mlp}.experts.{expert}.{part}.weight"] = normal(*shape)
    return made


def write_checkpoint(folder: Path, **changed: Any) -> Path:
    """One file for each MoE layer, with an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**changed)))
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors().items():
        files.setdefault(f"model-{2 if '.layers.2.' in name else 1}.safetensors", {})[name] = tensor
    for file, content in files.items():
        save_file(content, folder / file)
    weight_map = {name: file for file, content in files.items() for name in content}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_plan(
    file: Path, layers: Layers, model: Path | None = None, replaced: dict[str, Tensor] | None = None
) -> Pruning:
    """A plan for ``model``, or for none in particular, with a sidecar of replaced tensors."""
    identity = "0" * 32
    if model is not None:
        identity = fingerprint(json.loads((model / "config.json").read_text()), model)
    weights = None
    if replaced is not None:
        save_file(replaced, file.with_suffix(".safetensors"))
        weights = SidecarFile.of(file.with_suffix(".safetensors"))
    PrunePlan(model=identity, num_experts=EXPERTS, layers=layers, weights=weights).save(file)
    return Pruning(PrunePlan.load(file), file)
