"""Build the scheduler's skipping state once the model is loaded, before CUDA graphs are captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sglang_moe_opt.engine.events import emit
from sglang_moe_opt.engine.flags import refuse_unsupported
from sglang_moe_opt.engine.metrics import StepMetrics, metrics_enabled
from sglang_moe_opt.engine.pruning import adopt_stored_plan, get_pruning
from sglang_moe_opt.engine.pruning.check import check_once
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.engine.state import EngineState, set_state
from sglang_moe_opt.hints import resolve
from sglang_moe_opt.model_shape import MoEShape


def model_shape(model_config: Any) -> MoEShape:
    """Shape of the model that SGLang loaded, overrides of its config included.

    Raises:
        ValueError: the model has no routed experts that we know how to count.
    """
    config = getattr(model_config, "hf_text_config", None) or model_config.hf_config
    return MoEShape.from_config(config.to_dict())


def load_model(original: Callable[..., None], runner: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND ``ModelRunner.load_model``: check the plan first, and allocate the table where skipping is configured.

    Raises:
        ValueError, RuntimeError: the plan does not fit, or a hook is missing.
    """
    adopt_stored_plan(runner.model_config.model_path)
    settings, pruning = Settings.from_env(), get_pruning()
    if pruning is not None:
        check_once(pruning, runner.server_args, runner.model_config)
    original(runner, *args, **kwargs)
    if runner.is_draft_worker or not (settings.enabled or pruning):
        return
    from sglang_moe_opt.engine.hooks import verify_applied

    verify_applied()
    if pruning is not None:
        emit("plan_loaded", f"served under the plan {pruning.describe()}", plan=pruning.describe())
    if settings.enabled:
        _start_skipping(settings, runner)


def _start_skipping(settings: Settings, runner: Any) -> None:
    refuse_unsupported(runner.server_args)
    shape = model_shape(runner.model_config)
    policy = settings.load_policy()
    policy.check(shape)
    args_ = runner.server_args
    longest = max(args_.max_prefill_tokens or 0, args_.chunked_prefill_size or 0, 16384)
    state = EngineState.create(
        shape,
        policy,
        resolve(None, policy, shape),
        runner.device,
        max_tokens=longest + runner.model_config.context_len,
        graph_sizes=_graph_sizes(),
    )
    from sglang.srt.runtime_context import get_parallel

    if metrics_enabled() and get_parallel().tp_rank == 0:
        state.metrics = StepMetrics(state)
    set_state(state)
    layers, rank = len(shape.moe_layer_ids), get_parallel().tp_rank
    emit(
        "model_ready",
        f"{layers} MoE layers, top-{shape.top_k} of {shape.num_experts} experts; profiles {', '.join(policy.names)}; "
        f"default {policy.default}",
        **{"rank": rank, "moe_layers": layers, "top_k": shape.top_k, "experts": shape.num_experts},
    )


def _graph_sizes() -> Sequence[int]:
    """Batch sizes of the decode graphs that SGLang will capture."""
    from sglang.srt.runtime_context import get_exec

    config = get_exec().graph.cuda_graph_config
    return () if config is None else config.decode.bs or ()
