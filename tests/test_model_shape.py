"""Model shapes read from config.json, and their weight bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.shapes import ShapeSpec

V2_LITE = ShapeSpec.parse("deepseek-v2-lite").config()
V3 = ShapeSpec.parse("deepseek-v3").config()
QWEN3: dict[str, Any] = {  # Qwen3-30B-A3B
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def test_v2_lite() -> None:
    shape = MoEShape.from_config(V2_LITE)
    assert shape.moe_layer_ids == tuple(range(1, 27))
    assert (shape.top_k, shape.num_experts, shape.num_shared_experts) == (6, 64, 2)
    assert (shape.renormalize, shape.scoring, shape.n_group) == (False, "softmax", 1)


def test_v3() -> None:
    shape = MoEShape.from_config(V3)
    assert shape.moe_layer_ids == tuple(range(3, 61))
    assert (shape.top_k, shape.num_experts, shape.num_shared_experts) == (8, 256, 1)
    assert (shape.renormalize, shape.scoring, shape.n_group, shape.topk_group) == (True, "sigmoid", 8, 4)


def test_bytes_of_v2_lite_at_5_layers_are_the_measured_ones() -> None:
    """The figures of the CPU study: 542.6 MB fixed and 17.30 MB an expert in bf16."""
    shape = MoEShape.from_config(ShapeSpec.parse("deepseek-v2-lite@5").config())
    parts = shape.weight_bytes_per_token([6, 6, 6, 6])
    megabytes = {name: round(value / 1e6, 1) for name, value in parts.items()}
    assert megabytes["attention"] == 137.6
    assert megabytes["dense"] == 134.5
    assert megabytes["shared"] == 138.4
    assert megabytes["lm_head"] == 131.1
    assert megabytes["gate"] == 1.0
    assert megabytes["fixed"] == 542.6
    assert shape.expert_bytes == 17_301_504
    assert parts["routed"] == 24 * shape.expert_bytes
    assert parts["total"] == parts["fixed"] + parts["routed"]


def test_parameters_of_v3_are_the_published_671_billion() -> None:
    shape = replace(MoEShape.from_config(V3), bytes_per_param=1)
    everything = shape.weight_bytes_per_token([256] * 58)["total"] + 7168 * 129280  # and the embedding
    assert everything / 1e9 == pytest.approx(671, rel=0.002)
    assert (shape.weight_bytes_per_token([8] * 58)["total"]) / 1e9 == pytest.approx(37, rel=0.02)


def test_qwen_layers_and_attention() -> None:
    shape = MoEShape.from_config(QWEN3)
    assert shape.num_moe_layers == 48
    assert shape.attention_params == 2048 * 128 * (32 + 32 + 4 + 4)
    assert shape.num_shared_experts == 0
    sparse = MoEShape.from_config(QWEN3 | {"decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert sparse.moe_layer_ids == tuple(range(3, 48, 2))


def test_qwen2_shared_expert_has_its_own_width() -> None:
    shape = MoEShape.from_config(QWEN3 | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 5632})
    assert (shape.num_shared_experts, shape.shared_intermediate_size) == (1, 5632)


def test_mixtral_renormalises_and_has_no_dense_layer() -> None:
    shape = MoEShape.from_config(MIXTRAL)
    assert shape.renormalize and shape.num_moe_layers == 32
    assert shape.moe_intermediate_size == 14336
    assert shape.expert_bytes == 2 * 3 * 4096 * 14336


@pytest.mark.parametrize("freq", [2, [0, 1] * 14])
def test_moe_layer_freq(freq: object) -> None:
    shape = MoEShape.from_config(V2_LITE | {"num_hidden_layers": 28, "moe_layer_freq": freq})
    assert shape.moe_layer_ids == tuple(range(2, 28, 2)) if freq == 2 else tuple(range(1, 28, 2))


def test_sparse_attention_of_v32_counts_its_indexer() -> None:
    v32 = V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128}
    extra = MoEShape.from_config(v32).attention_params - MoEShape.from_config(V3).attention_params
    assert extra == 1536 * 64 * 128 + 7168 * 128 + 7168 * 64


def test_bytes_per_parameter() -> None:
    assert MoEShape.from_config(V3 | {"quantization_config": {"quant_method": "fp8"}}).bytes_per_param == 1
    assert MoEShape.from_config(V3 | {"quantization_config": {"quant_method": "awq", "bits": 4}}).bytes_per_param == 0.5
    assert MoEShape.from_config(V3 | {"torch_dtype": None, "dtype": "float32"}).bytes_per_param == 4
    with pytest.raises(ValueError, match="dtype 'int3'"):
        MoEShape.from_config(V3 | {"torch_dtype": "int3"})


def test_a_wrapper_is_read_through() -> None:
    assert MoEShape.from_config({"text_config": V3}) == MoEShape.from_config(V3)


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_experts_per_tok", "n_routed_experts", "v_head_dim"]
)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        MoEShape.from_config({name: value for name, value in V2_LITE.items() if name != key})


def test_an_unknown_model_must_say_whether_it_renormalises() -> None:
    with pytest.raises(ValueError, match="norm_topk_prob"):
        MoEShape.from_config({**MIXTRAL, "model_type": "novel"})


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ValueError, match="num_experts_per_tok"):
        MoEShape.from_config({"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128})


@pytest.mark.parametrize("change", [{"moe_layer_ids": ()}, {"moe_layer_ids": (3, 2)}, {"top_k": 65}, {"scoring": "x"}])
def test_contradictions_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(MoEShape.from_config(V2_LITE), **change)


def test_na_per_layer_must_fit() -> None:
    with pytest.raises(ValueError, match="3 entries for 26"):
        MoEShape.from_config(V2_LITE).weight_bytes_per_token([1, 2, 3])


def test_from_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(V3))
    shape = MoEShape.from_config(V3)
    assert MoEShape.from_path(tmp_path) == MoEShape.from_path(tmp_path / "config.json") == shape
    assert hash(shape) == hash(MoEShape.from_path(str(tmp_path)))
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        MoEShape.from_path(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        MoEShape.from_path(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        MoEShape.from_path(tmp_path)
