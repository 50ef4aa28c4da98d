"""`ServedModel`: what a model's config.json says about the work of serving it; presets of public DeepSeek models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.shapes import SHAPES, ShapeSpec, is_shape

_FP8: Final = {"quantization_config": {"quant_method": "fp8"}}

# The public config.json files, as far as they matter here.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v2-lite": SHAPES["deepseek-v2-lite"] | {"vocab_size": 102400},
    "deepseek-v2": SHAPES["deepseek-v2-lite"]
    | {
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_group": 8,
        "n_routed_experts": 160,
        "num_attention_heads": 128,
        "num_hidden_layers": 60,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "topk_group": 3,
        "topk_method": "group_limited_greedy",
        "vocab_size": 102400,
    },
    "deepseek-v3": SHAPES["deepseek-v3"] | _FP8,
}
ALIASES: Final = {"deepseek-r1": "deepseek-v3", "deepseek-v2.5": "deepseek-v2"}

ACTIVATION_BYTES: Final = 2.0
"""Of a hidden state's element, of the cache's, and of weights that fp8 checkpoints keep in bf16 (head, router)."""


@dataclass(frozen=True)
class ServedModel:
    """Sizes that the cost of a step depends on.

    Attributes:
        shape: layers, router, widths.
        replicated_attention_params: of one layer's attention, those that every rank of tensor parallelism holds whole:
            down-projections to the latents (MLA); 0 with grouped-query attention.
        kv_shards: ranks over which the cache can be split at most: 1 for MLA, whose heads share one latent.
        decode_flops_per_pair, prefill_flops_per_pair: of one layer's attention for a token and a cached token, all
            heads: in the latent space (absorbed) when decoding, with whole keys and values in prefill.
        kernels: launches of one step, see `_kernels`.
        num_heads: of attention, which tensor parallelism splits.
    """

    shape: MoEShape
    replicated_attention_params: int
    kv_shards: int
    decode_flops_per_pair: float
    prefill_flops_per_pair: float
    kernels: int
    num_heads: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ServedModel:
        """Read a Hugging Face config; see `MoEShape.from_config` for the kinds. Raises ValueError."""
        shape = MoEShape.from_config(config)
        if "text_config" in config and "num_hidden_layers" not in config:
            config = config["text_config"]
        heads, hidden, kernels = int(config["num_attention_heads"]), shape.hidden_size, _kernels(shape, config)
        if config.get("kv_lora_rank") is None:
            head_dim = config.get("head_dim") or hidden // heads
            kv_heads = config.get("num_key_value_heads") or heads
            return cls(shape, 0, kv_heads, 4.0 * heads * head_dim, 4.0 * heads * head_dim, kernels, heads)
        rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
        whole = config["qk_nope_head_dim"] + rope + config["v_head_dim"]
        replicated = hidden * (rank + rope + (config.get("q_lora_rank") or 0))
        absorbed = 2 * rank + rope
        return cls(shape, replicated, 1, 2.0 * heads * absorbed, 2.0 * heads * whole, kernels, heads)

    @property
    def wide_bytes(self) -> float:
        """Bytes of a parameter that quantised checkpoints leave alone: head, embedding and router."""
        return max(self.shape.bytes_per_param, ACTIVATION_BYTES)

    @property
    def kv_token_bytes(self) -> float:
        """Cache of one token in all layers."""
        return self.shape.num_layers * self.shape.kv_width * ACTIVATION_BYTES

    def with_weight_bits(self, bits: int) -> ServedModel:
        """The same model with weights of another width. Raises FieldError."""
        if bits not in (4, 8, 16, 32):
            raise FieldError("--weight-bits", bits, "4, 8, 16, 32")
        return replace(self, shape=replace(self.shape, bytes_per_param=bits / 8))


def find_model(name: str) -> ServedModel:
    """A preset, shape:NAME@LAYERS, a checkpoint folder or a config.json. Raises ValueError."""
    if is_shape(name):
        return ServedModel.from_config(ShapeSpec.parse(name).config())
    key = name.lower().removeprefix("deepseek-ai/")
    key = ALIASES.get(key, key)
    if key in PRESETS:
        return ServedModel.from_config(PRESETS[key])
    if not Path(name).exists():
        raise FieldError("--model", name, f"{', '.join(PRESETS)}, shape:NAME@LAYERS, a folder, or a config.json")
    return ServedModel.from_config(read_config(name))


def _kernels(shape: MoEShape, config: Mapping[str, Any]) -> int:
    """Launches of one step as a CUDA engine has them; collectives are not among them.

    MLA: norm, two projections, norm of the latent, absorbed key, rotary, cache, attention in two stages, absorbed
    value, output; two more where queries have a latent. Grouped-query attention: norm, projection, rotary, cache, two
    stages, output. Dense layer: norm, gate and up, activation, down. MoE layer: norm, router, top-k, two to align the
    slots, two products, activation, sum; shared experts: three, and the addition. Quantised weights: one before each
    product.
    """
    narrow = shape.bytes_per_param < ACTIVATION_BYTES
    if config.get("kv_lora_rank") is None:
        attention = 7 + 2 * narrow
    else:
        attention = 11 + 2 * bool(config.get("q_lora_rank")) + (2 + bool(config.get("q_lora_rank"))) * narrow
    shared = (4 + 2 * narrow) * bool(shape.num_shared_experts)
    dense, moe = 4 + 2 * narrow, 9 + 2 * narrow + shared
    layers, moe_layers = shape.num_layers, shape.num_moe_layers
    return layers * attention + (layers - moe_layers) * dense + moe_layers * moe
