"""GGUF files hold the checkpoint's own values under llama.cpp's names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from loadtest.gguf_export import ensure_gguf
from sglang_moe_opt.shape_checkpoint import ensure_shape

gguf = pytest.importorskip("gguf")


def read(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer")}
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint8)


def source(folder: Path, name: str) -> torch.Tensor:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (a safetensors file is no dict)
                return tensors.get_tensor(name)
    raise KeyError(name)


@pytest.mark.parametrize("shape", ["tiny-v2@2", "tiny-v3@2"])
def test_values_and_names(tmp_path: Path, shape: str) -> None:
    folder = ensure_shape(f"shape:{shape}", tmp_path / "model")
    path = ensure_gguf(folder)
    fields, tensors = read(path)
    config = json.loads((folder / "config.json").read_text())
    assert fields["deepseek2.expert_used_count"] == config["num_experts_per_tok"]
    assert fields["deepseek2.attention.q_lora_rank"] == (config["q_lora_rank"] or 0)
    assert fields["deepseek2.attention.key_length"] == config["kv_lora_rank"] + config["qk_rope_head_dim"]

    layer = "model.layers.1."
    experts = [source(folder, f"{layer}mlp.experts.{e}.down_proj.weight") for e in range(config["n_routed_experts"])]
    assert np.array_equal(tensors["blk.1.ffn_down_exps.weight"], bits(torch.stack(experts)))
    both = source(folder, f"{layer}self_attn.kv_b_proj.weight")
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    keys, values = both.view(config["num_attention_heads"], nope + value, -1).split([nope, value], dim=1)
    assert np.array_equal(tensors["blk.1.attn_k_b.weight"], bits(keys.transpose(1, 2)))
    assert np.array_equal(tensors["blk.1.attn_v_b.weight"], bits(values))
    gate = source(folder, f"{layer}mlp.gate.weight").float().numpy()
    assert np.array_equal(tensors["blk.1.ffn_gate_inp.weight"], gate)
    assert ("blk.1.exp_probs_b.bias" in tensors) == shape.startswith("tiny-v3")
    assert ("blk.1.attn_q.weight" in tensors) == shape.startswith("tiny-v2")
    assert "blk.0.ffn_gate.weight" in tensors and "blk.1.ffn_gate.weight" not in tensors

    written = path.stat().st_mtime_ns
    assert ensure_gguf(folder) == path and path.stat().st_mtime_ns == written


def test_a_model_it_cannot_write_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(ValueError, match="model_type 'mixtral'"):
        ensure_gguf(tmp_path)
    folder = ensure_shape("shape:tiny-v2@2", tmp_path / "half", dtype="float16")
    with pytest.raises(ValueError, match="F16"):
        ensure_gguf(folder)
    assert not list(tmp_path.rglob("*.gguf")) and not list(tmp_path.rglob("*.part"))
