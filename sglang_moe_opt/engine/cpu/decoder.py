"""DeepSeek's decoder on the CPU kernels, in one call a step.

Upstream runs each layer as dozens of small torch operations: at few requests their dispatch is a good part of a step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine import calibration
from sglang_moe_opt.engine.cpu import attention, experts, native, router
from sglang_moe_opt.engine.cpu.native import decoder
from sglang_moe_opt.engine.pruning.ids import slots_of
from sglang_moe_opt.engine.state import get_state
from sglang_moe_opt.engine.topk import drop_slots, narrowed_top_k
from sglang_moe_opt.engine.unsupported import ServerFields

logger = logging.getLogger(__name__)

_KNOWN = "_moe_opt_known"
_ONE_OR_OFF: ServerFields = (
    *("tp_size", "pp_size", "ep_size", "dp_size", "dcp_size", "attn_cp_size"),
    *("enable_lora", "lora_paths", "enable_eplb", "enable_two_batch_overlap", "enable_single_batch_overlap"),
    *("expert_distribution_recorder_mode", "enable_return_routed_experts", "speculative_algorithm"),
    "elastic_ep_backend",
)
"""Server arguments whose features reach into a layer: with one of them upstream's layers run, on the same kernels."""


def model_forward(
    original: Callable[..., Any],
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    forward_batch: Any,
    input_embeds: Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """AROUND ``DeepseekV2Model.forward``."""
    if not _covered(model, forward_batch):
        return original(model, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    known: _Known | None = getattr(model, _KNOWN, None)
    if known is None or known.pool is not attention.pools()[1]:
        known = _Known.of(model)
        setattr(model, _KNOWN, known)
    hidden = model.embed_tokens(input_ids) if input_embeds is None else input_embeds.clone()
    residual = torch.zeros_like(hidden)
    step = _Step.of(positions, forward_batch)
    known.layers.run(step.batch, hidden, residual, known.top_k(), known.drop())
    return native.rms_norm(hidden, model.norm.weight, model.norm.variance_epsilon, residual)


def after_load_weights(result: Any, causal_model: Any, *args: Any, **kwargs: Any) -> Any:
    """AFTER ``DeepseekV2ForCausalLM.load_weights``: the addresses of weights may be others now."""
    if hasattr(causal_model.model, _KNOWN):
        delattr(causal_model.model, _KNOWN)
    return result


@dataclass(frozen=True)
class _Step:
    """A step's tokens as the kernels take them, with the tensors that the struct points to."""

    batch: decoder.Batch
    tensors: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, positions: Tensor, forward_batch: Any) -> _Step:
        lengths, slots = forward_batch.seq_lens.long(), attention.pools()[0].req_to_token
        tensors = (
            positions,
            forward_batch.out_cache_loc,
            forward_batch.req_pool_indices.long(),
            lengths,
            None if forward_batch.forward_mode.is_decode() else forward_batch.extend_seq_lens.long(),
            slots,
        )
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        return cls(decoder.Batch(len(positions), len(lengths), *pointers, slots.stride(0)), tensors)


@dataclass(frozen=True)
class _Known:
    """What stays from step to step: a module's attributes are slow to look up.

    Attributes:
        pool: of the cache that the layers point to.
        configs: by layer, its id and its ``TopKConfig``, None where it is dense.
    """

    layers: decoder.Decoder
    pool: Any
    configs: list[tuple[int, Any]]

    @classmethod
    def of(cls, model: Any) -> _Known:
        return cls(
            decoder.Decoder([_layer(layer) for layer in model.layers]),
            attention.pools()[1],
            [(layer.layer_id, layer.mlp.topk.topk_config if layer.is_layer_sparse else None) for layer in model.layers],
        )

    def top_k(self) -> list[int]:
        """How many experts each layer's router is asked for in this step; 0 where the layer is dense."""
        return [0 if config is None else narrowed_top_k(layer_id, config.top_k) for layer_id, config in self.configs]

    def drop(self) -> decoder.Drop | None:
        """What drops slots behind the routers, if this step has any to drop or to count."""
        state = get_state()
        if state is None or not (state.step.active or state.step.sample):
            return None

        def drop(index: int, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
            layer_id, config = self.configs[index]
            if (layer := state.layer_index.get(layer_id)) is not None:
                drop_slots(state, layer, weights, ids, config, logits)

        return drop


def _layer(layer: Any) -> decoder.Layer:
    if layer.is_layer_sparse:
        return decoder.Layer(mla=_mla(layer), moe=_moe(layer.mlp))
    gate_up, down = layer.mlp.gate_up_proj.weight, layer.mlp.down_proj.weight
    return decoder.Layer(mla=_mla(layer), gate_up=gate_up.data_ptr(), down=down.data_ptr(), inner=down.shape[1])


def _mla(layer: Any) -> decoder.Mla:
    attn = layer.self_attn
    low = attn.q_lora_rank is not None
    return decoder.Mla(
        hidden=attn.hidden_size,
        heads=attn.num_local_heads,
        q_rank=attn.q_lora_rank or 0,
        rank=attn.kv_lora_rank,
        nope=attn.qk_nope_head_dim,
        rope=attn.qk_rope_head_dim,
        value=attn.v_head_dim,
        input_norm=layer.input_layernorm.weight.data_ptr(),
        kv_a=(attn.fused_qkv_a_proj_with_mqa if low else attn.kv_a_proj_with_mqa).weight.data_ptr(),
        q_a_norm=attn.q_a_layernorm.weight.data_ptr() if low else None,
        q=(attn.q_b_proj if low else attn.q_proj).weight.data_ptr(),
        kv_a_norm=attn.kv_a_layernorm.weight.data_ptr(),
        keys=attn.w_kc.data_ptr(),
        values=attn.w_vc.data_ptr(),
        output=attn.o_proj.weight.data_ptr(),
        post_norm=layer.post_attention_layernorm.weight.data_ptr(),
        angles=attention.angles(attn.rotary_emb).data_ptr(),
        cache=attention.latent_cache(attn).data_ptr(),
        epsilon=layer.input_layernorm.variance_epsilon,
        latent_epsilon=attn.kv_a_layernorm.variance_epsilon,
        scale=attn.attn_mqa.scaling,
        interleaved=not attn.rotary_emb.is_neox_style,
    )


def _moe(mlp: Any) -> decoder.Moe:
    config, routed, shared = mlp.topk.topk_config, mlp.experts, mlp.shared_experts
    _, hidden, inner = routed.w2_weight.shape
    bias, slots = config.correction_bias, slots_of(config)
    return decoder.Moe(
        hidden=hidden,
        inner=inner,
        shared=0 if shared is None else shared.down_proj.weight.shape[1],
        experts=mlp.gate.weight.shape[0],
        groups=config.num_expert_group or 1,
        kept_groups=config.topk_group or 1,
        gate=mlp.gate.weight.data_ptr(),
        w13=routed.w13_weight.data_ptr(),
        w2=routed.w2_weight.data_ptr(),
        shared_gate_up=None if shared is None else shared.gate_up_proj.weight.data_ptr(),
        shared_down=None if shared is None else shared.down_proj.weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        slots=None if slots is None else slots.data_ptr(),
        scale=mlp.routed_scaling_factor,
        sigmoid=bias is not None,
        renormalize=config.renormalize,
    )


def _covered(model: Any, forward_batch: Any) -> bool:
    plain = getattr(model, "_moe_opt_plain", None)
    if plain is None:
        obstacle = _obstacle(model)
        plain = model._moe_opt_plain = obstacle is None
        if plain:
            logger.info("sglang-moe-opt: %d layers in one call a step, on the CPU kernels", len(model.layers))
        elif native.ready():
            logger.warning("sglang-moe-opt: layers run operation by operation, because of %s", obstacle)
    return plain and attention.is_plain_batch(forward_batch)


def _obstacle(model: Any) -> str | None:
    """What in the server or the model is not DeepSeek-V2/V3 as published, unquantised, in one process."""
    from sglang.srt.runtime_context import get_server_args

    if not native.ready():
        return "missing kernels"
    if calibration.is_on():
        return "calibration"
    args = get_server_args()
    for name in _ONE_OR_OFF:
        if (value := getattr(args, name, None)) not in (None, False, 1, [], {}):
            return f"--{name.replace('_', '-')} {value}"
    if model.layers_to_capture or model.llama_4_scaling_config is not None or not _norms(model.norm):
        return "a variant of the model"
    return next((f"layer {i}" for i, layer in enumerate(model.layers) if not _is_plain_layer(layer)), None)


def _is_plain_layer(layer: Any) -> bool:
    from sglang.srt.models.deepseek_v2 import DeepseekV2DecoderLayer, DeepseekV2MLP, DeepseekV2MoE

    attn, mlp = layer.self_attn, layer.mlp
    if type(layer) is not DeepseekV2DecoderLayer or not attention.is_plain(attn):
        return False
    if attn.q_lora_rank is None:
        projections, inner_norms = [attn.q_proj, attn.kv_a_proj_with_mqa], [attn.kv_a_layernorm]
    else:
        projections = [attn.fused_qkv_a_proj_with_mqa, attn.q_b_proj]
        inner_norms = [attn.q_a_layernorm, attn.kv_a_layernorm]
    outer_norms = [layer.input_layernorm, layer.post_attention_layernorm]
    same_epsilon = all(len({norm.variance_epsilon for norm in norms}) == 1 for norms in (inner_norms, outer_norms))
    if not (same_epsilon and _norms(*outer_norms, *inner_norms) and _linears(*projections, attn.o_proj)):
        return False
    if type(mlp) is DeepseekV2MLP:
        return _is_plain_mlp(mlp)
    config = mlp.topk.topk_config if type(mlp) is DeepseekV2MoE else None
    return (
        config is not None
        and router.is_plain(config)
        and experts.is_plain(mlp.experts, mlp.experts.moe_runner_config)
        and native.supports(attn.o_proj.weight, mlp.gate.weight, mlp.experts.w13_weight)
        and mlp.gate.weight.is_contiguous()
        and (slots_of(config) is not None or mlp.gate.weight.shape[0] == mlp.experts.w13_weight.shape[0])
        and not getattr(mlp, "is_hash", False)
        and (mlp.shared_experts is None or _is_plain_mlp(mlp.shared_experts))
    )


def _is_plain_mlp(mlp: Any) -> bool:
    return mlp.swiglu_limit is None and _linears(mlp.gate_up_proj, mlp.down_proj)


def _linears(*modules: Any) -> bool:
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

    return all(
        type(m.quant_method) is UnquantizedLinearMethod
        and getattr(m, "bias", None) is None
        and native.supports(m.weight)
        and m.weight.is_contiguous()
        for m in modules
    )


def _norms(*norms: Any) -> bool:
    from sglang.srt.layers.layernorm import RMSNorm

    return all(type(n) is RMSNorm and native.supports(n.weight) and n.variance_size_override is None for n in norms)
