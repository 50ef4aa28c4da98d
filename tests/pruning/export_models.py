"""Small random checkpoints for the tests of exports, and what a pruned one should hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.plan import PrunePlan, SidecarFile
from sglang_moe_opt.shapes import ShapeSpec, checkpoint_shards

EXPERTS = 8
CONFIG = ShapeSpec.parse("tiny-v3@3").config("float32") | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 8,
    "n_group": 2,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "topk_group": 1,
    "vocab_size": 64,
}
MODELS = {
    "v2": ShapeSpec.parse("tiny-v2@3").config("float32")
    | {name: CONFIG[name] for name in CONFIG if name.endswith(("_size", "_tok", "routed_experts"))},
    "v3": CONFIG,
}
"""One model of each router: softmax without groups, sigmoid with two."""
UNIFORM = {1: (0, 3, 4, 7), 2: (1, 2, 5, 6)}
UNEQUAL_LAYERS = {1: (0, 3, 4, 7), 2: (0, 1, 2, 3, 5, 6)}
UNEQUAL_GROUPS = {1: (0, 1, 2, 4, 5), 2: (0, 1, 4, 5, 6)}


def make_model(folder: Path, config: Mapping[str, Any] = CONFIG, extra: Mapping[str, Any] | None = None) -> Path:
    """A random checkpoint with one file for the embedding, each layer and the head; `extra` tensors go to the last."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shards = checkpoint_shards(dict(config))
    weight_map: dict[str, str] = {}
    for index, specs in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {spec.name: torch.randn(spec.shape, generator=generator) for spec in specs}
        if index == len(shards) - 1:
            tensors |= extra or {}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return folder


def make_plan(
    model: Path, layers: dict[int, tuple[int, ...]], file: Path, sidecar: dict[str, Any] | None = None
) -> Path:
    weights = None
    if sidecar is not None:
        save_file(sidecar, file.with_suffix(".safetensors"))
        weights = SidecarFile.of(file.with_suffix(".safetensors"))
    config = json.loads((model / "config.json").read_text())
    PrunePlan(
        model=fingerprint(config, model),
        name="tiny",
        num_experts=config["n_routed_experts"],
        layers=layers,
        weights=weights,
        method={"criterion": "reap"},
        provenance={"corpus": "abc"},
    ).save(file)
    return file


def load(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        assert not found.keys() & tensors.keys()
        found |= tensors
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Bit for bit, dtypes included."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


def is_expert(name: str) -> bool:
    return ".mlp.experts." in name


def expected(full: dict[str, Any], layers: dict[int, tuple[int, ...]], *, renumbered: bool) -> dict[str, Any]:
    """The pruned model's tensors, by the obvious loop."""
    wanted = {name: tensor for name, tensor in full.items() if not is_expert(name)}
    for layer, kept in layers.items():
        prefix = f"model.layers.{layer}.mlp."
        for gate in ("gate.weight", "gate.e_score_correction_bias"):
            wanted[prefix + gate] = full[prefix + gate][list(kept)]
        for new, old in enumerate(kept):
            for name, tensor in full.items():
                if name.startswith(head := f"{prefix}experts.{old}."):
                    wanted[f"{prefix}experts.{new if renumbered else old}.{name.removeprefix(head)}"] = tensor
    return wanted


def shard(model: Path, number: int) -> Path:
    return sorted(model.glob("*.safetensors"))[number]
