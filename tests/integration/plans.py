"""Plans for the models under test, and the same models whole, for the reference."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan, SidecarFile, group_counts

Kept = dict[int, tuple[int, ...]]


def by_layer(shape: MoEShape) -> Kept:
    """Every layer its own number, the first one all; the same number of every group, for the router to shrink."""
    size = shape.num_experts // shape.n_group
    shares = (1, 0.75, 0.5, 0.4, 0.625)
    kept = {}
    for layer, share in zip(shape.moe_layer_ids, shares, strict=True):
        rng = random.Random(layer)
        groups = [rng.sample(range(g * size, (g + 1) * size), round(size * share)) for g in range(shape.n_group)]
        kept[layer] = tuple(sorted(expert for group in groups for expert in group))
    return kept


def unequal(shape: MoEShape) -> Kept:
    """Groups of unequal size: the router must be masked."""
    kept = {}
    for layer in shape.moe_layer_ids:
        rng = random.Random(layer)
        kept[layer] = tuple(sorted(rng.sample(range(shape.num_experts), rng.randint(34, 50))))
        assert len(set(group_counts(kept[layer], shape).tolist())) > 1
    return kept


PLANS: dict[str, Callable[[MoEShape], Kept]] = {
    "by-layer": by_layer,
    "by-layer, replaced": by_layer,
    "unequal": unequal,
}


def write_plan(name: str, model: Path, file: Path) -> Path:
    """Write the plan of that name for a model, ``replaced`` with a sidecar of other weights."""
    shape = MoEShape.from_path(model)
    kept = PLANS[name](shape)
    weights = None
    if name.endswith("replaced"):
        save_file(replaced_tensors(model), file.with_suffix(".safetensors"))
        weights = SidecarFile.of(file.with_suffix(".safetensors"))
    identity = fingerprint(json.loads((model / "config.json").read_text()), model)
    plan = PrunePlan(model=identity, name=name, num_experts=shape.num_experts, layers=kept, weights=weights)
    plan.check(shape, identity)
    plan.save(file)
    return file


def replaced_tensors(model: Path) -> dict[str, Tensor]:
    """Other weights for a few kept experts, a shared expert and a gate, as merging and compensation give."""
    tensors = load_file(model / "model.safetensors")
    kept = by_layer(MoEShape.from_path(model))
    layer = max(kept)
    mlp = f"model.layers.{layer}.mlp"
    names = [f"{mlp}.experts.{expert}.down_proj.weight" for expert in kept[layer][::3]]
    names += [f"{mlp}.shared_experts.down_proj.weight", f"model.layers.{layer - 1}.mlp.gate.weight"]
    return {name: (tensors[name] * -0.5).contiguous() for name in names}


def with_replaced_tensors(model: Path, folder: Path) -> Path:
    """The whole model with the sidecar's weights, for the reference."""
    if not folder.exists():
        folder.mkdir()
        shutil.copy(model / "config.json", folder)
        tensors = load_file(model / "model.safetensors") | replaced_tensors(model)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
