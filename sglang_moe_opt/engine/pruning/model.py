"""Build the layers with as many experts as the plan keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sglang_moe_opt.engine.pruning.active import get_pruning
from sglang_moe_opt.engine.pruning.ids import attach, slots_of
from sglang_moe_opt.engine.unsupported import check_standard_output

_WHOLE = "_moe_opt_whole_config"


def moe_init(original: Callable[..., None], moe: Any, config: Any, layer_id: int, *args: Any, **kwargs: Any) -> None:
    """AROUND ``DeepseekV2MoE.__init__``: a config of its own for each pruned layer.

    In mask mode the gate stays whole: removed experts get a score of -inf, and ids become slots behind the router.
    """
    pruning = get_pruning()
    kept = None if pruning is None else pruning.kept(layer_id)
    if pruning is None or kept is None:
        original(moe, config, layer_id, *args, **kwargs)
        return
    mode = pruning.gate_mode(config)
    smaller = copy.copy(config)
    smaller.n_routed_experts = len(kept)
    if mode == "mask":
        setattr(smaller, _WHOLE, config)
    original(moe, smaller, layer_id, *args, **kwargs)
    attach(moe.topk.topk_config, kept, pruning.plan.num_experts, moe.num_fused_shared_experts, mode)
    if mode == "mask":
        check_standard_output(moe.topk.topk_config)
        if moe.gate.e_score_correction_bias is None:
            moe.gate.register_forward_hook(_mask_logits(moe.topk.topk_config))


def gate_init(original: Callable[..., None], gate: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND ``MoEGate.__init__``: a row for every expert of the whole model in mask mode."""
    original(gate, getattr(config, _WHOLE, config), *args, **kwargs)


def _mask_logits(topk_config: Any) -> Callable[[Any, Any, Tensor], Tensor]:
    """A forward hook that takes removed experts out of the softmax."""
    slots = slots_of(topk_config)
    assert slots is not None

    def mask(gate: Any, inputs: Any, logits: Tensor) -> Tensor:
        return logits.masked_fill_(slots[: logits.shape[-1]] < 0, float("-inf"))

    return mask
