"""Absorbed MLA attention on the CPU kernels: decode, prefill, cached prefixes and chunks in one way.

Upstream's ``torch_native`` backend runs one Python iteration per sequence and layer, and pads the queries of a
prefill to the whole sequence. Here a step's sequences are attended in one call, straight from the paged latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native


@dataclass(frozen=True)
class Prepared:
    """Queries whose keys are in the cache: what the prepare step hands to the core step."""

    q: Tensor
    forward_batch: Any


def absorb_prepare(
    original: Callable[..., Any],
    attn: Any,
    positions: Tensor,
    hidden_states: Tensor,
    forward_batch: Any,
    zero_allocator: Any,
    llama_4_scaling: Any = None,
    prev_topk_indices: Any = None,
) -> tuple[Any, ...]:
    """AROUND ``forward_absorb_prepare``: project, absorb, rotate, write the cache."""
    if llama_4_scaling is not None or not _covered(attn, forward_batch):
        result: tuple[Any, ...] = original(
            attn, positions, hidden_states, forward_batch, zero_allocator, llama_4_scaling, prev_topk_indices
        )
        return result
    rank, rope, heads = attn.kv_lora_rank, attn.qk_rope_head_dim, attn.num_local_heads
    if attn.q_lora_rank is None:
        q = attn.q_proj(hidden_states)[0].view(-1, heads, attn.qk_head_dim)
        latent = attn.kv_a_proj_with_mqa(hidden_states)[0]
    else:
        from sglang.srt.layers.layer_boundary import get_attn_tp_context

        low, latent = get_attn_tp_context().fetch_qkv_latent().split([attn.q_lora_rank, rank + rope], dim=-1)
        q = attn.q_b_proj_forward(attn.q_a_layernorm(low))
    tokens = q.shape[0]
    absorbed = q.new_empty(tokens, heads, rank + rope)
    native.head_linear(q, attn.w_kc.transpose(1, 2), absorbed)
    native.mla_rope(
        q[..., attn.qk_nope_head_dim :],
        absorbed,
        latent,
        attn.kv_a_layernorm.weight,
        attn.kv_a_layernorm.variance_epsilon,
        angles(attn.rotary_emb),
        positions,
        latent_cache(attn),
        forward_batch.out_cache_loc,
        interleaved=not attn.rotary_emb.is_neox_style,
    )
    return (Prepared(absorbed, forward_batch),)


def absorb_core(original: Callable[..., Any], attn: Any, *state: Any, **kwargs: Any) -> Any:
    """AROUND ``forward_absorb_core``: attend, go back from the latent, project."""
    if not isinstance(state[0], Prepared):
        return original(attn, *state, **kwargs)
    q, batch = state[0].q, state[0].forward_batch
    tokens, heads, _ = q.shape
    decode = batch.forward_mode.is_decode()
    latent = native.mla_attention(
        q,
        latent_cache(attn),
        q.new_empty(tokens, heads, attn.kv_lora_rank),
        pools()[0].req_to_token,
        batch.req_pool_indices.long(),
        batch.seq_lens.long(),
        None if decode else batch.extend_seq_lens.long(),
        attn.attn_mqa.scaling,
    )
    values = q.new_empty(tokens, heads, attn.v_head_dim)
    native.head_linear(latent, attn.w_vc.transpose(1, 2), values)
    output, _ = attn.o_proj(values.view(tokens, -1))
    return output if attn.next_skip_topk is None else (output, None)


def pools() -> tuple[Any, Any]:
    """The request-to-slot table and the cache that this step runs on."""
    from sglang.srt.model_executor.forward_context import get_attn_backend

    backend = get_attn_backend()
    return backend.req_to_token_pool, backend.token_to_kv_pool


def latent_cache(attn: Any) -> Tensor:
    """The layer's cache [slots, latent + rope]."""
    cache: Tensor = pools()[1].get_key_buffer(attn.attn_mqa.layer_id)
    return cache.view(cache.shape[0], -1)


def _covered(attn: Any, batch: Any) -> bool:
    plain = getattr(attn, "_moe_opt_plain", None)
    if plain is None:
        plain = attn._moe_opt_plain = native.ready() and is_plain(attn)
    return plain and is_plain_batch(batch)


def is_plain_batch(batch: Any) -> bool:
    """True where the step decodes or extends sequences, and nothing is drafted or verified."""
    mode = batch.forward_mode
    return batch.spec_info is None and (mode.is_decode() or mode.is_extend())


def is_plain(attn: Any) -> bool:
    """True where the layer is MLA as published: no sparse index, LoRA, quantised latent or context parallelism."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.model_executor.forward_context import get_attn_backend

    keys, values, rotary = attn.w_kc.transpose(1, 2), attn.w_vc.transpose(1, 2), attn.rotary_emb
    cache = pools()[1].get_key_buffer(attn.attn_mqa.layer_id)
    return (
        isinstance(get_attn_backend(), TorchNativeAttnBackend)
        and not attn.use_dsa
        and attn.dcp_size == 1
        and not hasattr(attn, "prepare_attention_output_gate")
        and not getattr(attn.kv_b_proj, "set_lora", False)
        and rotary is not None
        and rotary.rotary_dim == attn.qk_rope_head_dim
        and attn.kv_lora_rank % 32 == 0
        and native.supports(keys, values, cache, attn.kv_a_layernorm.weight)
        and keys.is_contiguous()
        and values.is_contiguous()
        and cache.is_contiguous()
    )


def angles(rotary: Any) -> Tensor:
    """Cosines and sines in float32: upstream rounds its table to the model's dtype."""
    known: Tensor | None = getattr(rotary, "_moe_opt_angles", None)
    if known is None or known.shape[0] < rotary.cos_sin_cache.shape[0]:
        table = rotary.cos_sin_cache
        fresh = table if table.dtype is torch.float32 else rotary._compute_cos_sin_cache().float()
        known = (fresh if fresh.shape[0] >= table.shape[0] else table.float()).contiguous()
        rotary._moe_opt_angles = known
    return known
