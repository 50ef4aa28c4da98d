"""A compact DeepSeek V2 or V3 for training on CPU, with the parameter names of Hugging Face's implementation.

Differences from the reference implementation are in speed only: experts and attention run in our own kernels where
the processor has them, and matrices are cast to bfloat16 while master weights, norms, router and residual stream
stay in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from eval.reference_models import kernels
from eval.reference_models.loss import linear_cross_entropy
from eval.reference_models.recipe import ModelSpec
from eval.reference_models.router import Router, Routing, make_router


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


class Experts(nn.Module):
    """All routed experts of a layer: gate_up_proj (experts, 2 x width, hidden), down_proj (experts, hidden, width)."""

    compute_dtype = torch.float32
    fused = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        n, hidden, width = spec.n_routed_experts, spec.hidden_size, spec.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(n, hidden, width))

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """(tokens, hidden) to (tokens, hidden), float32."""
        dtype, weights, indices = self.compute_dtype, routing.weights, routing.indices
        if self.fused:
            run = torch.ops.reference_models.experts_forward
            return run(x.to(dtype), weights, indices, self.gate_up_proj, self.down_proj)[0]
        order = indices.reshape(-1).argsort(stable=True)
        token = order // indices.shape[1]
        sorted_x = x.to(dtype).index_select(0, token)
        sorted_weights = weights.reshape(-1).index_select(0, order).unsqueeze(1).to(dtype)
        gate, up = self._grouped(sorted_x, self.gate_up_proj, routing.counts).chunk(2, dim=-1)
        out = self._grouped(F.silu(gate) * up * sorted_weights, self.down_proj, routing.counts)
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
        self.gate = make_router(spec)
        self.experts = Experts(spec)
        self.shared_experts = MLP(spec.hidden_size, spec.moe_intermediate_size * spec.n_shared_experts)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """(batch, sequence, hidden) to the same shape, and what the router decided."""
        flat = x.reshape(-1, x.shape[-1])
        routing = self.gate(flat)
        return self.experts(flat, routing).view(x.shape) + self.shared_experts(x), routing


class Attention(nn.Module):
    """Multi-head latent attention; queries are compressed where the spec has a `q_lora_rank`."""

    fused = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        heads = spec.num_attention_heads
        if spec.q_lora_rank is None:
            self.q_proj = Linear(spec.hidden_size, heads * spec.qk_head_dim)
        else:
            self.q_a_proj = Linear(spec.hidden_size, spec.q_lora_rank)
            self.q_a_layernorm = RMSNorm(spec.q_lora_rank, 1e-6)
            self.q_b_proj = Linear(spec.q_lora_rank, heads * spec.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(spec.hidden_size, spec.kv_lora_rank + spec.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(spec.kv_lora_rank, 1e-6)  # eps is fixed in the reference implementation
        self.kv_b_proj = Linear(spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim))
        self.o_proj = Linear(heads * spec.v_head_dim, spec.hidden_size)

    def forward(self, x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, hidden) and rope (2, sequence, rope_dim / 2) to (batch, sequence, hidden)."""
        s, (batch, length, _) = self.spec, x.shape
        heads, nope, rot = s.num_attention_heads, s.qk_nope_head_dim, s.qk_rope_head_dim
        queries = self.q_proj(x) if s.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rot = queries.view(batch, length, heads, nope + rot).split([nope, rot], dim=-1)
        latent, k_rot = self.kv_a_proj_with_mqa(x).split([s.kv_lora_rank, rot], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, heads, nope + s.v_head_dim)
        k_nope, v = kv.split([nope, s.v_head_dim], dim=-1)
        k_rot = rotate(k_rot.unsqueeze(2), rope).expand(-1, -1, heads, -1)
        q = torch.cat([q_nope, rotate(q_rot, rope)], dim=-1)
        k = torch.cat([k_nope, k_rot], dim=-1)
        if self.fused and length % 64 == 0:
            out = torch.ops.reference_models.attention_forward(q.contiguous(), k.contiguous(), v.contiguous())[0]
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.o_proj(out.reshape(batch, length, heads * s.v_head_dim))


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

    def forward(self, x: torch.Tensor, rope: torch.Tensor) -> tuple[torch.Tensor, Routing | None]:
        """(batch, sequence, hidden), float32, to the same, and what the router decided if there is one."""
        x = x + self.self_attn(self.input_layernorm(x), rope)
        h = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            out, routing = self.mlp(h)
            return x + out, routing
        return x + self.mlp(h), None


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList([Layer(spec, i) for i in range(spec.num_hidden_layers)])
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Routing]]:
        """(batch, sequence) token ids to normed hidden states (batch, sequence, hidden) and each router's decisions."""
        rope = rope_table(tokens.shape[1], self.spec.qk_rope_head_dim, self.spec.rope_theta)
        x = self.embed_tokens(tokens)
        routings = []
        for layer in self.layers:
            x, routing = layer(x, rope)
            if routing is not None:
                routings.append(routing)
        return self.norm(x), routings


class ReferenceModel(nn.Module):
    """The language model; `compute_dtype` bfloat16 for training, float32 for exact comparison."""

    def __init__(self, spec: ModelSpec, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.model = Decoder(spec)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size)
        fused = compute_dtype == torch.bfloat16 and kernels.available()
        for module in self.modules():
            if isinstance(module, Linear | Experts):
                module.compute_dtype = compute_dtype
            if isinstance(module, Attention | Experts):
                module.fused = fused

    @property
    def routers(self) -> list[Router]:
        """The router of each expert layer."""
        return [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, MoE)]

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

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[Routing]]:
        """(batch, sequence) token ids to logits (batch, sequence, vocabulary) and each router's decisions."""
        hidden, routings = self.model(tokens)
        return self.lm_head(hidden), routings

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, list[Routing]]:
        """Mean cross-entropy of targets (batch, sequence) without keeping all logits; the routers' decisions."""
        hidden, routings = self.model(tokens)
        return linear_cross_entropy(hidden.flatten(0, 1), self.lm_head, targets.flatten()), routings
