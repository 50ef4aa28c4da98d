"""Routed experts on a plain CPU: the kernel, or upstream's loop made to accept dropped slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native


def moe_forward_native(
    original: Callable[..., Tensor], layer: Any, x: Tensor, topk_output: Any, moe_runner_config: Any
) -> Tensor:
    """AROUND ``moe_forward_native``: the kernel where it covers the layer, else upstream's loop."""
    if native.ready() and native.supports(x, layer.w13_weight) and is_plain(layer, moe_runner_config):
        ids, weights = topk_output.topk_ids, topk_output.topk_weights.float()
        return native.experts(x, layer.w13_weight, layer.w2_weight, ids, weights)
    return _loop(original, layer, x, topk_output, moe_runner_config)


def is_plain(layer: Any, config: Any) -> bool:
    """True where the experts are SwiGLU without bias, unquantised."""
    return (
        config.activation == "silu"
        and config.gemm1_alpha is None
        and not config.apply_router_weight_on_input
        and getattr(layer, "w13_weight_bias", None) is None
        and getattr(layer, "w2_weight_bias", None) is None
        and native.supports(layer.w13_weight, layer.w2_weight)
        and layer.w13_weight.is_contiguous()
        and layer.w2_weight.is_contiguous()
    )


def _loop(original: Callable[..., Tensor], layer: Any, x: Tensor, topk_output: Any, config: Any) -> Tensor:
    """Upstream's expert loop, which cannot take the id -1.

    Each kept slot is run as a token of its own with a top-k of 1, so that dropped slots cost nothing; weighting and
    summing are then done in upstream's order and precision.
    """
    weights, ids = topk_output.topk_weights, topk_output.topk_ids
    if not (dropped := ids < 0).any():
        return original(layer, x, topk_output, config)
    num_tokens, num_slots = ids.shape
    kept = (~dropped).flatten().nonzero().squeeze(1)
    slots = x.new_zeros(num_tokens * num_slots, x.shape[1])
    if len(kept):
        single = topk_output._replace(
            topk_weights=torch.ones_like(weights.flatten()[kept]).unsqueeze(1),
            topk_ids=ids.flatten()[kept].unsqueeze(1),
        )
        slots[kept] = original(layer, x[kept // num_slots], single, config)
    weighted = slots.view(num_tokens, num_slots, -1).to(weights.dtype).mul_(weights.unsqueeze(-1))
    return weighted.sum(dim=1).to(x.dtype)
