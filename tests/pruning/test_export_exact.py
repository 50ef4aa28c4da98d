"""Exported checkpoints in stock transformers: the logits of the full model with the removed experts masked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.pruning.export import Export

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch.overrides import TorchFunctionMode  # noqa: E402 (needs torch)

MINI = Path(__file__).resolve().parents[2] / "eval" / "reference_models" / "checkpoints"
SIZES: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "kv_lora_rank": 32,
    "moe_intermediate_size": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "vocab_size": 128,
}
ROUTERS: dict[str, dict[str, Any]] = {
    "v2": {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "q_lora_rank": None},
    "v2-groups": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "q_lora_rank": None},
    "v3": {"n_group": 4, "topk_group": 2, "q_lora_rank": 32},
}


class MaskLogits(TorchFunctionMode):
    """Within it, the product with `weight` has -inf in the columns of removed experts; the rest is unchanged."""

    def __init__(self, weight: Any, removed: Sequence[int]) -> None:
        super().__init__()
        self.address, self.removed = weight.data_ptr(), torch.tensor(removed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1].data_ptr() == self.address:
            return out.index_fill(-1, self.removed, float("-inf"))
        return out


def mask_removed(model: Any, plan: PrunePlan) -> None:
    """Softmax: logits at -inf before it; sigmoid: the choice score at -inf through the bias."""
    for layer in plan.layers:
        router = model.model.layers[layer].mlp.gate
        removed = sorted(set(range(plan.num_experts)) - set(plan.kept(layer)))
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[removed] = float("-inf")
            continue
        router.forward = partial(masked_forward, router, MaskLogits(router.weight, removed))


def masked_forward(router: Any, mode: MaskLogits, hidden: Any) -> Any:
    with mode:
        return type(router).forward(router, hidden)


def random_model(folder: Path, name: str) -> Path:
    """Weights large enough for the experts to speak, saved by transformers in several shards."""
    family = "DeepseekV3" if name == "v3" else "DeepseekV2"
    config = getattr(transformers, f"{family}Config")(**SIZES | ROUTERS[name])
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3 if "experts" in parameter_name else 0.15)
        for layer in model.model.layers[1:] if name == "v3" else []:
            layer.mlp.gate.e_score_correction_bias.normal_(0, 0.1)
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def random_plan(folder: Path, shape: MoEShape, per_group: Sequence[int]) -> PrunePlan:
    """Each layer keeps a random choice of so many experts in its groups."""
    draw, size = random.Random(0), shape.num_experts // shape.n_group
    layers = {
        layer: tuple(
            group * size + expert
            for group, count in enumerate(per_group)
            for expert in sorted(draw.sample(range(size), count))
        )
        for layer in shape.moe_layer_ids
    }
    return PrunePlan(model=fingerprint(read_config(folder), folder), num_experts=shape.num_experts, layers=layers)


def load(folder: Path) -> Any:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("name", ["v2", "v2-groups", "v3", "mini-v2", "mini-v3"])
def test_the_logits_are_those_of_the_masked_full_model(name: str, tmp_path: Path) -> None:
    folder = MINI / name if name.startswith("mini") else random_model(tmp_path / "full", name)
    if not (folder / "config.json").exists():
        pytest.skip(f"the trained checkpoint is not there: {folder}")
    shape = MoEShape.from_path(folder)
    plan = random_plan(folder, shape, [shape.num_experts // shape.n_group // 2] * shape.n_group)
    plan.save(tmp_path / "plan.json")
    export = Export.prepare(folder, tmp_path / "plan.json", tmp_path / "out", max_shard_bytes=500_000)
    assert export.form == "stock"
    export.write()

    ids = torch.randint(0, shape.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = load(folder)
        unpruned = full(ids).logits
        mask_removed(full, plan)
        masked = full(ids).logits
        del full
        pruned_model = load(tmp_path / "out")
        pruned = pruned_model(ids).logits
    assert pruned_model.config.n_routed_experts == shape.num_experts // 2
    assert (masked - unpruned).abs().max() > 0.1  # the removed experts mattered
    assert torch.allclose(pruned, masked, atol=1e-4, rtol=0), (pruned - masked).abs().max()


@pytest.mark.parametrize(
    "per_group", [(4, 4, 3, 3), (3, 3, 3, 3)], ids=["groups that the config would divide wrongly", "equal groups"]
)
def test_transformers_stops_at_what_only_the_plugin_can_load(per_group: tuple[int, ...], tmp_path: Path) -> None:
    folder = random_model(tmp_path / "full", "v3")
    plan = random_plan(folder, MoEShape.from_path(folder), per_group)
    if len(set(per_group)) == 1:  # one layer more
        plan = plan.model_copy(update={"layers": plan.layers | {3: tuple(range(plan.num_experts))}})
    plan.save(tmp_path / "plan.json")
    export = Export.prepare(folder, tmp_path / "plan.json", tmp_path / "out")
    assert export.form == "plugin"
    export.write()
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
