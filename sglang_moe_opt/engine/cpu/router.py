"""The routers of DeepSeek on the CPU kernel; upstream's take about fifteen torch operations for each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native

Routed = tuple[Tensor, Tensor]


def grouped_topk(original: Callable[..., Routed], *args: Any, **kwargs: Any) -> Routed:
    """AROUND ``topk.grouped_topk``: DeepSeek-V2. Upstream calls both by keyword alone."""
    return original(*args, **kwargs) if args else _route(original, kwargs, scoring=kwargs["scoring_func"])


def biased_grouped_topk(original: Callable[..., Routed], *args: Any, **kwargs: Any) -> Routed:
    """AROUND ``topk.biased_grouped_topk``: DeepSeek-V3."""
    return original(*args, **kwargs) if args else _route(original, kwargs, scoring="sigmoid")


def _route(original: Callable[..., Routed], kwargs: dict[str, Any], *, scoring: str) -> Routed:
    logits, bias = kwargs["gating_output"], kwargs.get("correction_bias")
    plain = kwargs["num_fused_shared_experts"] == 0 and native.ready() and native.supports(logits)
    if not plain or (bias is not None and bias.dim() != 1):
        return original(**kwargs)
    scaled = kwargs["apply_routed_scaling_factor_on_output"]
    return native.route(
        logits.to(torch.float32).contiguous(),
        kwargs["topk"],
        bias=None if bias is None else bias.to(torch.float32),
        groups=kwargs["num_expert_group"] or 1,
        kept_groups=kwargs["topk_group"] or 1,
        scoring=scoring,
        renormalize=kwargs["renormalize"],
        scale=kwargs["routed_scaling_factor"] if scaled else 1.0,
    )


def is_plain(config: Any) -> bool:
    """True where the layer's ``TopK`` is one of the two routers of DeepSeek and nothing besides."""
    bias = config.correction_bias
    return (
        config.use_grouped_topk
        and config.custom_routing_function is None
        and config.num_shared_topk_slots == 0
        and not config.apply_routed_scaling_factor_on_output
        and (config.scoring_func == "softmax" if bias is None else bias.dim() == 1 and bias.dtype is torch.float32)
    )
