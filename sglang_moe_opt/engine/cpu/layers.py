"""The dense layers on the CPU kernels: projections, router gate, language-model head, norms, activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native


def linear_apply(
    original: Callable[..., Tensor], method: Any, layer: Any, x: Tensor, bias: Tensor | None = None
) -> Tensor:
    """AROUND ``UnquantizedLinearMethod.apply``."""
    weight = layer.weight
    covered = native.ready() and native.supports(x, weight) and weight.is_contiguous()
    if covered and (bias is None or native.supports(x, bias)):
        return native.linear(x, weight, bias)
    return original(method, layer, x, bias)


def compute_lm_head(
    original: Callable[..., Tensor],
    processor: Any,
    hidden_states: Tensor,
    lm_head: Any,
    embedding_bias: Any = None,
    **kwargs: Any,
) -> Tensor:
    """AROUND ``LogitsProcessor._compute_lm_head``."""
    weight = getattr(lm_head, "weight", None)
    plain = embedding_bias is None and not hasattr(lm_head, "apply_lora") and not processor.use_fp32_lm_head
    if (
        plain
        and weight is not None
        and native.ready()
        and native.supports(hidden_states, weight)
        and weight.is_contiguous()
    ):
        return native.linear(hidden_states, weight)
    return original(processor, hidden_states, lm_head, embedding_bias, **kwargs)


def gate_forward(
    original: Callable[..., Tensor], gate: Any, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """AROUND ``MoEGate.forward``: router logits in float32 also from bfloat16, as on CUDA.

    Rounded to bfloat16, near ties are decided by the rounding.
    """
    if native.ready() and native.supports(hidden_states, gate.weight):
        return native.linear(hidden_states, gate.weight, dtype=torch.float32)
    return original(gate, hidden_states, *args, **kwargs)


def rms_norm(
    original: Callable[..., Any], norm: Any, x: Tensor, residual: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``RMSNorm.forward_native``; like the CUDA kernel it adds into ``residual`` in place."""
    plain = not (
        args or any(value is not None for value in kwargs.values()) or norm.cast_x_before_out_mul or norm.fp32_residual
    )
    plain = plain and norm.variance_size_override is None and norm.override_orig_dtype is None
    if not (plain and native.ready() and x.shape[-1] == norm.hidden_size and native.supports(x, norm.weight)):
        return original(norm, x, residual, *args, **kwargs)
    if residual is None:
        return native.rms_norm(x, norm.weight, norm.variance_epsilon)
    if not (native.supports(x, residual) and residual.is_contiguous()):
        return original(norm, x, residual)
    return native.rms_norm(x, norm.weight, norm.variance_epsilon, residual), residual


def silu_and_mul(original: Callable[..., Tensor], activation: Any, x: Tensor) -> Tensor:
    """AROUND ``SiluAndMul.forward_native``."""
    if native.ready() and native.supports(x) and x.is_contiguous():
        return native.silu_and_mul(x)
    return original(activation, x)
