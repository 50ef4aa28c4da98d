"""A DeepSeek-V2/V3 checkpoint as a GGUF file, so that llama.cpp can be measured on the same weights.

Weights keep their values and width (bf16); norms and the router become fp32, as llama.cpp's own converter has them.
There is no tokenizer in it: every token has a made-up name, and prompts are sent as token ids.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

ARCHITECTURE = "deepseek2"

_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj#k": "attn_k_b",
    "self_attn.kv_b_proj#v": "attn_v_b",
    "self_attn.o_proj": "attn_output",
}
_QUERY = {"self_attn.q_proj": "attn_q"}
_LOW_RANK_QUERY = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
}
_DENSE = {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
_MOE = {
    "mlp.gate": "ffn_gate_inp",
    **{f"mlp.experts.*.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")},
    **{f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}
"""Checkpoint name to GGUF name, both without ``.weight``; ``*`` is all experts, ``#k`` and ``#v`` are parts of kv_b."""


def ensure_gguf(checkpoint: Path) -> Path:
    """``model.gguf`` in the checkpoint's folder, written first unless it is there; about as large as the checkpoint.

    Raises:
        ValueError: the model is not a DeepSeek-V2/V3 with bf16 or fp32 safetensors.
    """
    target = checkpoint / "model.gguf"
    if not target.exists():
        part = target.with_suffix(".part")
        try:
            _write(checkpoint, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _write(checkpoint: Path, path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    if config.get("model_type") not in ("deepseek_v2", "deepseek_v3"):
        raise ValueError(f"{checkpoint}: model_type {config.get('model_type')!r}, allowed: deepseek_v2, deepseek_v3")
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _metadata(writer, config)
    _vocabulary(writer, config)
    tensors = _Tensors(checkpoint)
    names = list(_names(config))
    for name, source in names:
        shape, dtype = tensors.describe(source, config)
        wide = _is_wide(name)
        kind = gguf.GGMLQuantizationType.F32 if wide or dtype == "F32" else gguf.GGMLQuantizationType.BF16
        if dtype not in ("F32", "BF16"):
            raise ValueError(f"{checkpoint}: {source} is {dtype}, allowed: BF16, F32")
        itemsize = 4 if kind is gguf.GGMLQuantizationType.F32 else 2
        writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) * itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, source in names:
        tensor = tensors.read(source, config)
        tensor = tensor.float() if _is_wide(name) else tensor
        flat = tensor.contiguous().view(torch.int16 if tensor.dtype is torch.bfloat16 else tensor.dtype)
        writer.write_tensor_data(flat.numpy())
    writer.close()


def _is_wide(name: str) -> bool:
    return name.endswith(("norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias"))


def _names(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of GGUF name and checkpoint name, the latter in the notation of the tables above."""
    yield "token_embd.weight", "model.embed_tokens.weight"
    yield "output_norm.weight", "model.norm.weight"
    yield "output.weight", "lm_head.weight"
    query = _QUERY if config.get("q_lora_rank") is None else _LOW_RANK_QUERY
    for layer in range(config["num_hidden_layers"]):
        dense = layer < config["first_k_dense_replace"]
        for source, name in {**_LAYER, **query, **(_DENSE if dense else _MOE)}.items():
            first, mark, part = source.partition("#")
            yield f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{first}.weight{mark}{part}"
        if not dense and config.get("topk_method") == "noaux_tc":
            yield f"blk.{layer}.exp_probs_b.bias", f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


class _Tensors:
    """The checkpoint's tensors by name, read when asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._files = {
            name: file
            for path in sorted(checkpoint.glob("*.safetensors"))
            for file in [safe_open(path, framework="pt")]
            for name in file.keys()  # noqa: SIM118 (a safetensors file is no dict)
        }

    def describe(self, name: str, config: dict[str, Any]) -> tuple[list[int], str]:
        """Shape and dtype without reading."""
        first, _, part = name.replace("*", "0").partition("#")
        slice_ = self._files[first].get_slice(first)
        shape = list(slice_.get_shape())
        if "*" in name:
            shape = [config["n_routed_experts"], *shape]
        elif part:
            nope, value, rank = config["qk_nope_head_dim"], config["v_head_dim"], config["kv_lora_rank"]
            heads = config["num_attention_heads"]
            shape = [heads, rank, nope] if part == "k" else [heads, value, rank]
        return shape, slice_.get_dtype()

    def read(self, name: str, config: dict[str, Any]) -> torch.Tensor:
        """The tensor as GGUF wants it: experts stacked, kv_b split by head into the absorbed key and value parts."""
        if "*" in name:
            parts = [name.replace("*", str(expert)) for expert in range(config["n_routed_experts"])]
            return torch.stack([self._files[part].get_tensor(part) for part in parts])
        first, _, part = name.partition("#")
        tensor: torch.Tensor = self._files[first].get_tensor(first)
        if not part:
            return tensor
        nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
        keys, values = tensor.view(-1, nope + value, tensor.shape[-1]).split([nope, value], dim=1)
        return keys.transpose(1, 2) if part == "k" else values


def _metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    sigmoid = config.get("scoring_func") == "sigmoid"
    writer.add_name(config["model_type"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_q_lora_rank(config.get("q_lora_rank") or 0)
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    if (config.get("n_group") or 1) > 1:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_freq_base(config["rope_theta"])
    if yarn := config.get("rope_scaling"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(yarn["factor"])
        writer.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * yarn["mscale_all_dim"])


def _vocabulary(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    count = config["vocab_size"]
    specials = [b"<unk>", b"<s>", b"</s>"]
    letters = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    words = [f"▁t{index}".encode() for index in range(count - len(specials) - len(letters))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * len(letters) + [gguf.TokenType.NORMAL] * len(words)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*specials, *letters, *words])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types(kinds)
