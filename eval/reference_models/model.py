"""A compact DeepSeek-V2 for training on CPU, with the parameter names of Hugging Face's DeepseekV2ForCausalLM.

Differences from the reference implementation are in speed only: experts run as grouped matrix products over
tokens sorted by expert, and matrices are cast to bfloat16 while master weights, norms, router and residual
stream stay in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from eval.reference_models.balance import balance_loss, expert_counts
from eval.reference_models.recipe import ModelSpec


@dataclass
class RouterStats:
    """What the router of each expert layer did in one forward pass."""

    balance: list[torch.Tensor] = field(default_factory=list)
    z: list[torch.Tensor] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)


class Linear(nn.Linear):
    """A linear map without bias whose product is computed in `compute_dtype`."""

    compute_dtype = torch.float32

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs) in `compute_dtype`."""
        return F.linear(x.to(self.compute_dtype), self.weight.to(self.compute_dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., size) of any type to float32."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate)
        self.up_proj = Linear(hidden, intermediate)
        self.down_proj = Linear(intermediate, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., hidden)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Softmax router with greedy top-k; the k weights are not renormalised (norm_topk_prob = false)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.n_routed_experts, spec.hidden_size))
        self.top_k = spec.num_experts_per_tok
        self.scale = spec.routed_scaling_factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(tokens, hidden) to logits and scores (tokens, experts), weights and indices (tokens, k)."""
        logits = F.linear(x.float(), self.weight)
        scores = logits.softmax(dim=-1)
        weights, indices = scores.topk(self.top_k, dim=-1)
        return logits, scores, weights * self.scale, indices


class Experts(nn.Module):
    """All routed experts of a layer: gate_up_proj (experts, 2 x width, hidden), down_proj (experts, hidden, width)."""

    compute_dtype = torch.float32

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        n, hidden, width = spec.n_routed_experts, spec.hidden_size, spec.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(n, hidden, width))

    def forward(
        self, x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """(tokens, hidden) with router weights and indices (tokens, k) to (tokens, hidden), float32."""
        dtype, k = self.compute_dtype, indices.shape[1]
        order = indices.reshape(-1).argsort(stable=True)
        token = order // k
        sorted_x = x.to(dtype).index_select(0, token)
        sorted_weights = weights.reshape(-1).index_select(0, order).unsqueeze(1).to(dtype)
        gate, up = self._grouped(sorted_x, self.gate_up_proj, counts).chunk(2, dim=-1)
        out = self._grouped(F.silu(gate) * up * sorted_weights, self.down_proj, counts)
        return torch.zeros(x.shape, dtype=torch.float32).index_add(0, token, out.float())

    def _grouped(self, x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Rows of `x`, sorted by expert, times the transposed matrix of their expert."""
        if self.compute_dtype == torch.bfloat16:
            offsets = counts.cumsum(0).to(torch.int32)
            return torch._grouped_mm(x, weight.to(torch.bfloat16).transpose(1, 2), offs=offsets)
        parts = x.split(counts.tolist())
        return torch.cat([part @ w.t().to(x.dtype) for part, w in zip(parts, weight, strict=True)])


class MoE(nn.Module):
    """Routed experts plus the shared experts (one SwiGLU of their summed width)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = Router(spec)
        self.experts = Experts(spec)
        self.shared_experts = MLP(spec.hidden_size, spec.moe_intermediate_size * spec.n_shared_experts)

    def forward(self, x: torch.Tensor, stats: RouterStats) -> torch.Tensor:
        """(batch, sequence, hidden) to the same shape; appends this layer's routing to `stats`."""
        flat = x.reshape(-1, x.shape[-1])
        logits, scores, weights, indices = self.gate(flat)
        counts = expert_counts(indices, scores.shape[-1])
        stats.balance.append(balance_loss(scores, counts))
        stats.z.append(logits.logsumexp(dim=-1).square().mean())
        stats.counts.append(counts)
        stats.scores.append(scores.detach())
        return self.experts(flat, weights, indices, counts).view(x.shape) + self.shared_experts(x)


class Attention(nn.Module):
    """Multi-head latent attention without query compression (q_lora_rank = null)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        heads = spec.num_attention_heads
        self.q_proj = Linear(spec.hidden_size, heads * spec.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(spec.hidden_size, spec.kv_lora_rank + spec.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(spec.kv_lora_rank, 1e-6)  # eps is fixed in the reference implementation
        self.kv_b_proj = Linear(spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim))
        self.o_proj = Linear(heads * spec.v_head_dim, spec.hidden_size)

    def forward(self, x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) and rope (2, sequence, rope_dim / 2) to (batch, sequence, hidden)."""
        s, (batch, length, _) = self.spec, x.shape
        heads, nope, rot = s.num_attention_heads, s.qk_nope_head_dim, s.qk_rope_head_dim
        q_nope, q_rot = self.q_proj(x).view(batch, length, heads, nope + rot).split([nope, rot], dim=-1)
        latent, k_rot = self.kv_a_proj_with_mqa(x).split([s.kv_lora_rank, rot], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, heads, nope + s.v_head_dim)
        k_nope, v = kv.split([nope, s.v_head_dim], dim=-1)
        k_rot = rotate(k_rot.unsqueeze(2), rope).expand(-1, -1, heads, -1)
        q = torch.cat([q_nope, rotate(q_rot, rope)], dim=-1).transpose(1, 2)
        k = torch.cat([k_nope, k_rot], dim=-1).transpose(1, 2)
        # Equal head widths select the fused CPU kernel; the zero columns are cut off again.
        v = F.pad(v, (0, nope + rot - s.v_head_dim)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : s.v_head_dim]
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, heads * s.v_head_dim))


def rope_table(length: int, dim: int, theta: float) -> torch.Tensor:
    """Cosines and sines, (2, length, dim / 2), float32."""
    frequency = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    angle = torch.outer(torch.arange(length).float(), frequency)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring channel pairs (interleaved rope) of (batch, sequence, heads, dim)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope[0][:, None], rope[1][:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(spec)
        dense = index < spec.first_k_dense_replace
        self.mlp = MLP(spec.hidden_size, spec.intermediate_size) if dense else MoE(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(self, x: torch.Tensor, rope: torch.Tensor, stats: RouterStats) -> torch.Tensor:
        """(batch, sequence, hidden), float32, to the same."""
        x = x + self.self_attn(self.input_layernorm(x), rope)
        h = self.post_attention_layernorm(x)
        return x + (self.mlp(h, stats) if isinstance(self.mlp, MoE) else self.mlp(h))


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList([Layer(spec, i) for i in range(spec.num_hidden_layers)])
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(self, tokens: torch.Tensor, stats: RouterStats) -> torch.Tensor:
        """(batch, sequence) token ids to normed hidden states (batch, sequence, hidden)."""
        rope = rope_table(tokens.shape[1], self.spec.qk_rope_head_dim, self.spec.rope_theta)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, rope, stats)
        return self.norm(x)


class ReferenceModel(nn.Module):
    """The language model; `compute_dtype` bfloat16 for training, float32 for exact comparison."""

    def __init__(self, spec: ModelSpec, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.model = Decoder(spec)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size)
        for module in self.modules():
            if isinstance(module, Linear | Experts):
                module.compute_dtype = compute_dtype

    def init_weights(self, seed: int) -> None:
        """Scaled normal initialisation; router logits start with unit spread so that routing decides early."""
        generator = torch.Generator().manual_seed(seed)
        depth = math.sqrt(2 * self.spec.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("embed_tokens.weight"):
                nn.init.normal_(parameter, std=0.1, generator=generator)
            else:
                std = 1.0 / math.sqrt(parameter.shape[-1])
                if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                    std /= depth
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, RouterStats]:
        """(batch, sequence) token ids to logits (batch, sequence, vocabulary) and the routing statistics."""
        stats = RouterStats()
        return self.lm_head(self.model(tokens, stats)), stats
