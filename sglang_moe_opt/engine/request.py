"""Requests in the scheduler: which schedule each runs under, and the cache namespace that goes with it."""

from __future__ import annotations

import functools
from typing import Any

from sglang_moe_opt.engine.pruning import get_pruning
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.engine.state import EngineState, get_state
from sglang_moe_opt.hints import ResolvedHint
from sglang_moe_opt.layer_table import FULL, LayerTable
from sglang_moe_opt.model_shape import MoEShape

WIRE_KEY = "__moe_skip_resolved"
"""Key of ``custom_params`` under which the HTTP process sends the resolved schedule to the scheduler."""
_NAMESPACE = "moe-skip:"
_PLAN_NAMESPACE = "moe-prune:"


@functools.lru_cache(maxsize=4096)
def _from_wire(text: str, shape: MoEShape) -> ResolvedHint:
    return ResolvedHint.from_wire(text, shape)


def request_init(result: None, req: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Req.__init__``: give the request its schedule and its radix-cache namespace.

    Hints were validated where HTTP can answer 400. Here an exception would end the server, so that a request whose
    schedule cannot be read is aborted with the reason.
    """
    if (state := get_state()) is not None:
        _apply_schedule(state, req)
    if (pruning := get_pruning()) is not None:
        # This process knows one plan only, but caches beyond it (HiCache storage, LMCache) may be shared with servers
        # of the whole model or of another plan.
        req.extra_key = f"{_PLAN_NAMESPACE}{pruning.plan.digest}|{req.extra_key or ''}"


def _apply_schedule(state: EngineState, req: Any) -> None:
    req.moe_opt_hint = state.default
    params = req.sampling_params.custom_params
    text = params.get(WIRE_KEY) if isinstance(params, dict) else None
    if text is not None:
        try:
            hint = _from_wire(text, state.shape)
            if hint.levels:
                state.auto.find(hint)
            req.moe_opt_hint = hint
        except Exception as error:  # the scheduler must survive whatever was sent
            req.set_finish_with_abort(f"sglang-moe-opt: {error}")
    if Settings.from_env().cache_isolation:
        req.extra_key = namespaced(req.extra_key, req.moe_opt_hint.prefill)


def namespaced(extra_key: str | None, table: LayerTable) -> str | None:
    """The radix-cache key of ``extra_key`` under a schedule; ``full`` keeps upstream's.

    The schedule goes in front: upstream reads a LoRA id off the end. A user's own key that looks like one of ours is
    marked, so that nobody can reach into another schedule's namespace.
    """
    if table.is_full and not (extra_key or "").startswith(_NAMESPACE):
        return extra_key
    return f"{_NAMESPACE}{FULL if table.is_full else table.digest}|{extra_key or ''}"


def checkpoint_prompt_only(tree: Any, req: Any, *args: Any, up_to: int, **kwargs: Any) -> tuple[tuple, dict]:
    """BEFORE a radix tree's ``checkpoint``: text generated under another schedule than the prompt's is not kept.

    The namespace is that of the prefill schedule. Where decode differs, or may have differed under an auto profile,
    generated tokens would serve later prompts that must be computed under the prefill schedule.
    """
    hint: ResolvedHint | None = getattr(req, "moe_opt_hint", None)
    if hint is not None and not hint.is_one_schedule:
        up_to = min(up_to, max(len(req.origin_input_ids), req.kv.cache_protected_len))
    return (tree, req, *args), {**kwargs, "up_to": up_to}
