"""`MoEShape`: what a mixture-of-experts model's config.json says about layers, router and weight sizes. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Scoring = Literal["softmax", "sigmoid"]

_SIGMOID_MODELS: Final = {"deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe", "dots1"}  # omit scoring_func at times
# model types that leave norm_topk_prob out of config.json where it has the class's default (transformers 5)
_RENORMALIZE_DEFAULT: Final = {
    "deepseek_v2": False,
    "deepseek_v3": True,
    "deepseek_v32": True,
    "kimi_k2": True,
    "glm4_moe": True,
    "mixtral": True,
    "phimoe": True,
    "olmoe": False,
    "qwen2_moe": False,
    "qwen3_moe": False,
}
_DTYPE_BYTES: Final = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "float8_e4m3fn": 1.0}


@dataclass(frozen=True)
class MoEShape:
    """A model's layers, router and sizes; hashable. Raises ValueError where the values contradict each other.

    moe_layer_ids: 0-based indices of the layers with routed experts, ascending.
    top_k, num_experts: routed experts activated per token, and in all; num_shared_experts: always active ones.
    renormalize: the router divides the kept weights by their sum. scoring: how logits become scores.
    n_group, topk_group: expert groups, and groups kept per token; 1 and 1 without groups.
    hidden_size ... shared_intermediate_size (all shared experts together): widths in elements.
    attention_params: weights of one layer's attention projections. kv_width: cached elements per token and layer.
    bytes_per_param: 2 for bf16, 1 for fp8.
    """

    num_layers: int
    moe_layer_ids: tuple[int, ...]
    top_k: int
    num_experts: int
    num_shared_experts: int
    renormalize: bool
    scoring: Scoring
    n_group: int = 1
    topk_group: int = 1
    hidden_size: int = 0
    moe_intermediate_size: int = 0
    shared_intermediate_size: int = 0
    intermediate_size: int = 0
    vocab_size: int = 0
    attention_params: int = 0
    kv_width: int = 0
    bytes_per_param: float = 2.0

    def __post_init__(self) -> None:
        ids = self.moe_layer_ids
        if not ids or list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < self.num_layers:
            raise ValueError(f"moe_layer_ids: {ids} are not ascending layers of a {self.num_layers}-layer model")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k: {self.top_k} of {self.num_experts} experts")
        if self.scoring not in ("softmax", "sigmoid"):
            raise ValueError(f"scoring: {self.scoring!r}, allowed: softmax, sigmoid")

    @property
    def num_moe_layers(self) -> int:
        return len(self.moe_layer_ids)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert: gate, up and down projections."""
        return self._bytes(3 * self.hidden_size * self.moe_intermediate_size)

    @classmethod
    def from_path(cls, path: str | Path) -> MoEShape:
        """Read a checkpoint folder or a config.json. Raises ValueError when there is none or it is no MoE model."""
        return cls.from_config(read_config(path))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MoEShape:
        """Read a Hugging Face config of the DeepSeek V2/V3/V3.2, Kimi K2, Qwen2/3-MoE or Mixtral kind.

        Raises ValueError naming the key that is missing.
        """
        if "text_config" in config and "num_hidden_layers" not in config:  # multimodal wrappers
            config = config["text_config"]
        kind = config.get("model_type", "")
        hidden = _int(config, "hidden_size")
        expert_width = _int(config, "moe_intermediate_size", "intermediate_size")
        num_shared, shared_width = _shared(config, expert_width)
        return cls(
            num_layers=_int(config, "num_hidden_layers"),
            moe_layer_ids=tuple(_moe_layers(config)),
            top_k=_int(config, "num_experts_per_tok", "num_experts_per_token"),
            num_experts=_int(config, "n_routed_experts", "num_experts", "num_local_experts"),
            num_shared_experts=num_shared,
            renormalize=bool(_get(config, "norm_topk_prob", default=_RENORMALIZE_DEFAULT.get(kind))),
            scoring=_get(config, "scoring_func", default="sigmoid" if kind in _SIGMOID_MODELS else "softmax"),
            n_group=config.get("n_group") or 1,
            topk_group=config.get("topk_group") or 1,
            hidden_size=hidden,
            moe_intermediate_size=expert_width,
            shared_intermediate_size=shared_width,
            intermediate_size=_int(config, "intermediate_size"),
            vocab_size=_int(config, "vocab_size"),
            attention_params=_attention_params(config, hidden),
            kv_width=_kv_width(config, hidden),
            bytes_per_param=_bytes_per_param(config),
        )

    def weight_bytes_per_token(self, na_per_layer: Sequence[float]) -> dict[str, int]:
        """Weight bytes that one token alone reads in a decode step; `na_per_layer` has one entry per MoE layer.

        Keys: attention, dense, shared, gate, lm_head, their sum `fixed`, `routed`, and `total`.
        Embedding row, norms and biases are left out (well under 0.1 %). Raises ValueError on a wrong length.
        """
        if len(na_per_layer) != self.num_moe_layers:
            raise ValueError(f"na_per_layer: {len(na_per_layer)} entries for {self.num_moe_layers} MoE layers")
        moe = self.num_moe_layers
        fixed = {
            "attention": self._bytes(self.num_layers * self.attention_params),
            "dense": self._bytes((self.num_layers - moe) * 3 * self.hidden_size * self.intermediate_size),
            "shared": self._bytes(moe * 3 * self.hidden_size * self.shared_intermediate_size),
            "gate": self._bytes(moe * self.hidden_size * self.num_experts),
            "lm_head": self._bytes(self.hidden_size * self.vocab_size),
        }
        total_fixed = sum(fixed.values())
        routed = round(float(sum(na_per_layer)) * self.expert_bytes)
        return {**fixed, "fixed": total_fixed, "routed": routed, "total": total_fixed + routed}

    def _bytes(self, params: int) -> int:
        return round(params * self.bytes_per_param)


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint folder's config.json, or of the file itself. Raises ValueError."""
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: no readable config.json ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: not a JSON object")
    return config


def _get(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """The first of `names` that is set; ValueError naming the first if none is and there is no default."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    if default is None:
        kind = config.get("model_type", "unknown")
        raise ValueError(f"config.json: key {names[0]!r} is missing (model_type {kind!r})")
    return default


def _int(config: Mapping[str, Any], *names: str) -> int:
    value = _get(config, *names)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"config.json: {names[0]} is {value!r}, not an integer")
    return value


def _moe_layers(config: Mapping[str, Any]) -> list[int]:
    count = _int(config, "num_hidden_layers")
    if "n_routed_experts" in config or "first_k_dense_replace" in config:  # DeepSeek, Kimi, GLM
        first, freq = config.get("first_k_dense_replace") or 0, _get(config, "moe_layer_freq", default=1)
        every = freq if isinstance(freq, list) else [int(layer % freq == 0) for layer in range(count)]
        return [layer for layer in range(first, count) if every[layer]]
    dense = set(config.get("mlp_only_layers") or ())  # Qwen; Mixtral has neither key
    step = config.get("decoder_sparse_step") or 1
    return [layer for layer in range(count) if layer not in dense and (layer + 1) % step == 0]


def _shared(config: Mapping[str, Any], expert_width: int) -> tuple[int, int]:
    """Number of shared experts and their width together."""
    if width := config.get("shared_expert_intermediate_size"):  # Qwen2-MoE: one, of its own width
        return 1, width
    count = config.get("n_shared_experts") or config.get("num_shared_experts") or 0
    return count, count * expert_width


def _attention_params(config: Mapping[str, Any], hidden: int) -> int:
    heads = _int(config, "num_attention_heads")
    if config.get("kv_lora_rank") is None:  # grouped-query attention: q, k, v, o
        head_dim = config.get("head_dim") or hidden // heads
        kv_heads = _get(config, "num_key_value_heads", default=heads)
        return int(hidden * head_dim * (2 * heads + 2 * kv_heads))
    rank, nope, rope = (_int(config, key) for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"))
    v_dim, q_rank = _int(config, "v_head_dim"), config.get("q_lora_rank")
    query = heads * (nope + rope)
    params = hidden * query if q_rank is None else q_rank * (hidden + query)
    params += hidden * (rank + rope) + rank * heads * (nope + v_dim) + heads * v_dim * hidden
    if index_heads := config.get("index_n_heads"):  # DeepSeek V3.2: wq_b, wk, weights_proj of the sparse indexer
        index_dim = _int(config, "index_head_dim")
        params += (q_rank or hidden) * index_heads * index_dim + hidden * (index_dim + index_heads)
    return int(params)


def _kv_width(config: Mapping[str, Any], hidden: int) -> int:
    if config.get("kv_lora_rank") is not None:  # one latent, and one rotary key for all heads
        return _int(config, "kv_lora_rank") + _int(config, "qk_rope_head_dim")
    heads = _int(config, "num_attention_heads")
    return int(2 * _get(config, "num_key_value_heads", default=heads) * (config.get("head_dim") or hidden // heads))


def _bytes_per_param(config: Mapping[str, Any]) -> float:
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping) and quantization:
        method = quantization.get("quant_method")
        return 1.0 if method in ("fp8", "compressed-tensors") else float(quantization.get("bits", 8)) / 8
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    if dtype not in _DTYPE_BYTES:
        raise ValueError(f"config.json: dtype {dtype!r}, allowed: {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[dtype]
