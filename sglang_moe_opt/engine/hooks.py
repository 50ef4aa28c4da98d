"""Every place of SGLang that is hooked, with the reason; registered by the plugin, checked at start and by doctor."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_ENGINE = "sglang_moe_opt.engine"


@dataclass(frozen=True)
class Hook:
    """One hook: ``kind`` is a ``HookType`` name; ``function`` is ``module:name`` below the engine package."""

    target: str
    kind: str
    function: str
    reason: str


HOOKS = (
    Hook("sglang.srt.server_args.ServerArgs.add_cli_args", "AFTER", "flags:add_cli_args", "add our server flags"),
    Hook("sglang.srt.server_args.ServerArgs.from_cli_args", "BEFORE", "flags:from_cli_args", "read our server flags"),
    Hook("sglang.srt.server_args.prepare_server_args", "AFTER", "flags:prepare_server_args", "refuse what cannot work"),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.__init__",
        "AFTER",
        "http.tokenizer:tokenizer_manager_init",
        "know policy and model where hints arrive",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
        "AROUND",
        "http.tokenizer:create_tokenized_object",
        "resolve hints that came by another way than HTTP",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._wait_one_response",
        "AROUND",
        "http.tokenizer:wait_one_response",
        "report the schedule in meta_info",
    ),
    Hook(
        "sglang.srt.entrypoints.http_server._setup_and_run_http_server",
        "BEFORE",
        "http.middleware:setup_http_server",
        "response headers, x-moe-skip, policy and plan that are served",
    ),
    Hook(
        "sglang.srt.entrypoints.http_server.serve_generate_request",
        "AROUND",
        "http.admission:serve_generate_request",
        "hints of /generate, HTTP 400 and 429",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase.handle_request",
        "AROUND",
        "http.admission:handle_openai_request",
        "hints of /v1 endpoints, HTTP 400 and 429",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.Req.__init__",
        "AFTER",
        "request:request_init",
        "schedule and cache namespace of a request",
    ),
    Hook(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint",
        "BEFORE",
        "request:checkpoint_prompt_only",
        "keep text generated under another schedule out of the cache",
    ),
    Hook(
        "sglang.srt.mem_cache.radix_cache.RadixCache.checkpoint",
        "BEFORE",
        "request:checkpoint_prompt_only",
        "the same for the other tree",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.load_model",
        "AROUND",
        "setup:load_model",
        "refuse a plan that does not fit, allocate the schedule table",
    ),
    Hook(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        "AFTER",
        "batch:forward_batch_init",
        "which schedule each token runs under",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner._forward_raw",
        "AROUND",
        "batch:forward_raw",
        "write the step's schedules, collect its counters",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter.record_scheduler_idle",
        "AFTER",
        "metrics:on_idle",
        "publish the last steps' counters",
    ),
    Hook(
        "sglang.srt.layers.moe.topk.select_experts",
        "AROUND",
        "topk:select_experts",
        "ask for fewer experts where all tokens agree",
    ),
    Hook(
        "sglang.srt.layers.moe.topk._post_process_topk_ids",
        "AROUND",
        "topk:post_process_topk_ids",
        "drop slots behind every router",
    ),
    Hook(
        "sglang.srt.layers.moe.topk.TopK.bind_runner_backend",
        "AFTER",
        "topk:bind_runner_backend",
        "refuse experts that route in their own kernel",
    ),
    Hook(
        "sglang.srt.models.deepseek_v2.DeepseekV2MoE.__init__",
        "AROUND",
        "pruning.model:moe_init",
        "allocate kept experts only",
    ),
    Hook(
        "sglang.srt.models.deepseek_v2.MoEGate.__init__",
        "AROUND",
        "pruning.model:gate_init",
        "keep a masked gate whole",
    ),
    Hook(
        "sglang.srt.model_loader.weight_utils.safetensors_weights_iterator",
        "AROUND",
        "pruning.load:safetensors_weights",
        "read kept experts only",
    ),
    Hook(
        "sglang.srt.model_loader.weight_utils.buffered_multi_thread_safetensors_weights_iterator",
        "AROUND",
        "pruning.load:safetensors_weights",
        "the same for the other reader",
    ),
    Hook(
        "sglang.srt.models.deepseek_common.deepseek_weight_loader.DeepseekV2WeightLoaderMixin.do_load_weights",
        "BEFORE",
        "pruning.load:do_load_weights",
        "renumber experts, cut gates, replace tensors",
    ),
    Hook(
        "sglang.srt.layers.moe.topk.capture_routed_experts_if_allowed",
        "BEFORE",
        "pruning.ids:capture_routed_experts",
        "return_routed_experts in the whole model's ids",
    ),
    Hook(
        "sglang.srt.layers.moe.fused_moe_native.moe_forward_native",
        "AROUND",
        "cpu.experts:moe_forward_native",
        "experts on a CPU: our kernel, which skips dropped slots",
    ),
)

TARGETS = {hook.target: hook.reason for hook in HOOKS}


def register_hooks(hooks: Sequence[Hook] = HOOKS) -> None:
    """Register every hook with SGLang's plugin framework."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in hooks:
        module, name = hook.function.split(":")
        function = getattr(importlib.import_module(f"{_ENGINE}.{module}"), name)
        HookRegistry.register(hook.target, function, HookType[hook.kind])


def verify_applied(hooks: Sequence[Hook] = HOOKS) -> None:
    """Check that each hook is in place: the framework only logs a hook that fails, where nobody sees it.

    Raises:
        RuntimeError: naming the targets that were not hooked.
    """
    missing = [hook.target for hook in hooks if not hasattr(_resolve(hook.target), "__wrapped__")]
    if missing:
        raise RuntimeError(
            "sglang-moe-opt could not hook " + ", ".join(missing) + "; run `moe-opt doctor` for the installed version"
        )


def _resolve(target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(pkgutil.resolve_name(owner), name)
