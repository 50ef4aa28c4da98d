"""The routing hook: drops slots of SGLang's top-k output as each token's schedule says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sglang_moe_opt.engine.pruning.ids import to_originals, to_slots
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.engine.state import EngineState, get_state
from sglang_moe_opt.engine.unsupported import check_standard_output
from sglang_moe_opt.routing import Choice, apply_skip, compact

TopKTriple = tuple[Tensor, Tensor, Tensor | None]


def select_experts(
    original: Callable[..., Any],
    hidden_states: Tensor,
    router_logits: Tensor,
    topk_config: Any,
    *,
    layer_id: int | None = None,
    **kwargs: Any,
) -> Any:
    """AROUND ``select_experts``: a step whose tokens all run one static schedule asks the router for fewer experts.

    That is what an edited config does, bit for bit also in bf16, where ties are broken inside the router.
    """
    num_shared = topk_config.num_shared_topk_slots
    top_k = narrowed_top_k(layer_id, topk_config.top_k - num_shared) + num_shared
    if top_k != topk_config.top_k:
        topk_config = copy.copy(topk_config)
        topk_config.top_k = top_k
    return original(hidden_states, router_logits, topk_config, layer_id=layer_id, **kwargs)


def narrowed_top_k(layer_id: int | None, top_k: int) -> int:
    """How many experts to ask the router for: fewer than ``top_k`` where all of the step's tokens agree on it."""
    state = get_state()
    if state is None or state.step.uniform is None or layer_id not in state.layer_index:
        return top_k
    return min(top_k, int(state.step.uniform[state.layer_index[layer_id]]))


def post_process_topk_ids(
    original: Callable[..., TopKTriple],
    topk_ids: Tensor,
    topk_weights: Tensor,
    topk_config: Any,
    router_logits: Tensor,
    layer_id: int,
    *args: Any,
    **kwargs: Any,
) -> TopKTriple:
    """AROUND ``sglang.srt.layers.moe.topk._post_process_topk_ids``: every router of the engine ends there.

    Dropping comes last, on the ids that the original returns: an expert-location table indexed by -1 would name a
    real expert. Slots are ranked by the logical ids that went in. In a pruned layer what the experts get are their
    slots in memory, and what is recorded are the whole model's ids.
    """
    logical_ids = topk_ids
    ids, weights, recorded = original(topk_ids, topk_weights, topk_config, router_logits, layer_id, *args, **kwargs)
    state = get_state()
    if state is not None and (layer := state.layer_index.get(layer_id)) is not None:
        remapped = kwargs.get("expert_location_dispatch_info") is not None
        if state.step.active:
            weights = weights.float()
        drop_slots(state, layer, weights, ids, topk_config, router_logits, logical_ids if remapped else None)
        if state.step.active:
            weights, ids = _cut(state, layer, weights, ids, topk_config.num_shared_topk_slots)
            if recorded is not None:
                recorded = ids[:, : ids.shape[1] - topk_config.num_shared_topk_slots]
    if recorded is not None:
        recorded = to_originals(topk_config, recorded)
    return to_slots(topk_config, ids), weights, recorded


def _cut(state: EngineState, layer: int, weights: Tensor, ids: Tensor, num_shared: int) -> tuple[Tensor, Tensor]:
    """Weights and ids without the columns that no token of the step keeps."""
    if state.step.width is None:
        return weights, ids
    # One column stays where nothing is kept: the expert loop cannot reshape an empty top-k.
    width = max(1, min(int(state.step.width[layer]), ids.shape[1] - num_shared))
    return compact(weights, ids, width, num_shared)


def drop_slots(
    state: EngineState,
    layer: int,
    weights: Tensor,
    ids: Tensor,
    topk_config: Any,
    router_logits: Tensor,
    logical_ids: Tensor | None = None,
) -> None:
    """Apply each token's schedule to weights (float32) and ids [tokens, slots] in place; count if this step is sampled.

    ``layer`` counts MoE layers from 0.

    Raises:
        RuntimeError: the layer's kernel routes by itself, so that there are no logits to rank by.
    """
    num_shared = topk_config.num_shared_topk_slots
    if not state.step.active:
        if state.step.sample:
            _count_experts(state, layer, ids[:, : ids.shape[1] - num_shared])
        return
    if router_logits.shape[0] != ids.shape[0]:
        raise RuntimeError(
            f"sglang-moe-opt: layer {state.shape.moe_layer_ids[layer]} routes inside a fused kernel, so expert "
            "skipping cannot reach it; start the server with --moe-runner-backend triton"
        )
    choice = _choice(topk_config, router_logits)
    consolidator = state.consolidator if state.step.consolidates else None
    if consolidator is not None and len(ids) > consolidator.longest:
        consolidator = None
    if consolidator is None or state.step.drops:
        apply_skip(
            weights,
            ids,
            choice,
            state.token_rows,
            state.table,
            layer,
            logical_ids=logical_ids,
            num_shared=num_shared,
            stats=state.stats if consolidator is None else None,
            dynamic=state.step.dynamic,
            scale=_scale(topk_config),
        )
    if consolidator is not None:
        consolidator.apply(weights, ids, choice, state.token_rows, layer, topk_config, logical_ids, state.stats)


def _scale(config: Any) -> float:
    """The factor that this router puts into its weights; elsewhere the experts' output is scaled."""
    return float(config.routed_scaling_factor or 1.0) if config.apply_routed_scaling_factor_on_output else 1.0


def _choice(config: Any, router_logits: Tensor) -> Choice:
    """How this router selects. A grouped router with a correction bias is DeepSeek-V3's, sigmoid by definition."""
    bias = config.correction_bias
    scoring = "sigmoid" if bias is not None and config.use_grouped_topk else config.scoring_func
    return Choice(logits=router_logits, bias=bias, scoring=scoring)


def _count_experts(state: EngineState, layer: int, routed_ids: Tensor) -> None:
    flat = routed_ids.flatten().long()
    state.stats.touched[layer].index_fill_(0, flat[flat >= 0], 1)


def bind_runner_backend(result: None, topk: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``TopK.bind_runner_backend``: refuse experts whose kernel does the routing itself."""
    if Settings.from_env().enabled:
        check_standard_output(topk.topk_config)
