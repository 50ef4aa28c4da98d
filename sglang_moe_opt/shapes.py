"""Model shapes that can be written with random weights: their configs, and the tensors each layer has. Pure.

A spec is `NAME` or `NAME@LAYERS`, with or without the prefix `shape:`. Sizes are those of the public config.json files;
the vocabulary of deepseek-v2-lite is cut to 32000 (lm_head 131.1 MB in bf16), so that a short model is not all lm_head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

PREFIX: Final = "shape:"

# What a tensor's values are drawn from: normal(0, std 0.02), ones, or a router's fp32 correction bias, normal as well.
Kind = Literal["normal", "ones", "bias"]

_COMMON: Final[dict[str, Any]] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "moe_layer_freq": 1,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "use_cache": True,
}
_V2: Final[dict[str, Any]] = _COMMON | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "q_lora_rank": None,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
}
_V3: Final[dict[str, Any]] = _COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "ep_size": 1,
    "n_group": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 0,  # the multi-token prediction layer is not written
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
}
_TINY: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "kv_lora_rank": 64,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rope_scaling": None,
    "v_head_dim": 32,
    "vocab_size": 8192,
}
_YARN: Final[dict[str, Any]] = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v2-lite": _V2
    | {
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 27,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        "v_head_dim": 128,
        "vocab_size": 32000,
    },
    "deepseek-v3": _V3
    | {
        "first_k_dense_replace": 3,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "num_hidden_layers": 61,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        "v_head_dim": 128,
        "vocab_size": 129280,
    },
    "tiny-v2": _V2 | _TINY,
    "tiny-v3": _V3 | _TINY | {"n_routed_experts": 64, "q_lora_rank": 48},
}


@dataclass(frozen=True)
class ShapeSpec:
    """A known shape and how many of its layers to write."""

    name: str
    num_layers: int

    @classmethod
    def parse(cls, text: str) -> ShapeSpec:
        """Parse NAME or NAME@LAYERS. Raises ValueError on an unknown name or a layer count without an MoE layer."""
        name, at, layers = text.removeprefix(PREFIX).partition("@")
        if name not in SHAPES:
            raise ValueError(f"shape: got {name[:80]!r}, allowed: {', '.join(SHAPES)} (and @LAYERS)")
        first, last = SHAPES[name]["first_k_dense_replace"] + 1, SHAPES[name]["num_hidden_layers"]
        if not at:
            return cls(name, last)
        if not (layers.isascii() and layers.isdigit() and len(layers) < 6 and first <= int(layers) <= last):
            raise ValueError(f"shape {name}: layers: got {layers[:80]!r}, allowed: an integer from {first} to {last}")
        return cls(name, int(layers))

    def __str__(self) -> str:
        return f"{self.name}@{self.num_layers}"

    def config(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """The content of config.json."""
        config = copy.deepcopy(SHAPES[self.name]) | {"num_hidden_layers": self.num_layers, "torch_dtype": dtype}
        return dict(sorted(config.items()))


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: its Hugging Face name, shape in elements, and what its values are drawn from."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = "normal"


def is_shape(text: str) -> bool:
    """Whether a model argument names a shape and not a folder."""
    return text.startswith(PREFIX)


def checkpoint_shards(config: dict[str, Any]) -> list[list[TensorSpec]]:
    """Every tensor of a DeepSeek V2 or V3 checkpoint, grouped by file: embedding, one group per layer, head."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    embedding = [TensorSpec("model.embed_tokens.weight", (vocab, hidden))]
    head = [TensorSpec("model.norm.weight", (hidden,), "ones"), TensorSpec("lm_head.weight", (vocab, hidden))]
    layers = [list(_layer(config, layer)) for layer in range(config["num_hidden_layers"])]
    return [embedding, *layers, head]


def _layer(config: dict[str, Any], layer: int) -> Iterator[TensorSpec]:
    prefix, hidden = f"model.layers.{layer}.", config["hidden_size"]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{prefix}{norm}.weight", (hidden,), "ones")
    yield from _attention(config, f"{prefix}self_attn.")
    if layer < config["first_k_dense_replace"]:
        yield from _mlp(f"{prefix}mlp.", hidden, config["intermediate_size"])
        return
    experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
    yield TensorSpec(f"{prefix}mlp.gate.weight", (experts, hidden))
    if config["topk_method"] == "noaux_tc":
        yield TensorSpec(f"{prefix}mlp.gate.e_score_correction_bias", (experts,), "bias")
    for expert in range(experts):
        yield from _mlp(f"{prefix}mlp.experts.{expert}.", hidden, width)
    yield from _mlp(f"{prefix}mlp.shared_experts.", hidden, width * config["n_shared_experts"])


def _attention(config: dict[str, Any], prefix: str) -> Iterator[TensorSpec]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, v_dim = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    query, q_rank = heads * (nope + rope), config["q_lora_rank"]
    if q_rank is None:
        yield TensorSpec(f"{prefix}q_proj.weight", (query, hidden))
    else:
        yield TensorSpec(f"{prefix}q_a_proj.weight", (q_rank, hidden))
        yield TensorSpec(f"{prefix}q_a_layernorm.weight", (q_rank,), "ones")
        yield TensorSpec(f"{prefix}q_b_proj.weight", (query, q_rank))
    yield TensorSpec(f"{prefix}kv_a_proj_with_mqa.weight", (rank + rope, hidden))
    yield TensorSpec(f"{prefix}kv_a_layernorm.weight", (rank,), "ones")
    yield TensorSpec(f"{prefix}kv_b_proj.weight", (heads * (nope + v_dim), rank))
    yield TensorSpec(f"{prefix}o_proj.weight", (hidden, heads * v_dim))


def _mlp(prefix: str, hidden: int, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}gate_proj.weight", (width, hidden))
    yield TensorSpec(f"{prefix}up_proj.weight", (width, hidden))
    yield TensorSpec(f"{prefix}down_proj.weight", (hidden, width))
