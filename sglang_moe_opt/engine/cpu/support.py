"""Hooks that let the official CUDA wheel serve DeepSeek models where there is no accelerator, and on our kernels.

Upstream's own CPU engine (``SGLANG_USE_CPU_ENGINE=1``) needs a kernel library that is not on the registry;
without it every layer falls back to plain torch, except for the two places handled here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sglang_moe_opt.engine.cpu import attention, decoder, layers, native, router

_MLA = "models.deepseek_common.attention_forward_methods.forward_mla.DeepseekMLAForwardMixin"


@functools.cache
def is_plain_cpu() -> bool:
    """True where torch sees no accelerator and upstream's CPU kernel engine is not asked for."""
    import torch
    from sglang.srt.utils import is_cpu

    accelerators = (torch.cuda, getattr(torch, "xpu", None), getattr(torch, "mps", None))
    return not is_cpu() and not any(a is not None and a.is_available() for a in accelerators)


def _rotary_init(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Build a rotary embedding on its native torch path.

    On an unknown device ``RotaryEmbedding.__init__`` imports vllm's CUDA kernel, which is not installed. The
    constructor reads the module flag ``_is_cpu`` only to decide that import, so it is set for that call alone:
    left on, later calls would look for the missing CPU kernel library.
    """
    from sglang.srt.layers.rotary_embedding import base

    before = base._is_cpu
    base._is_cpu = True
    try:
        original(*args, **kwargs)
    finally:
        base._is_cpu = before


def _rope_wrapper(original: Callable[..., Any], *args: Any, rope_scaling: Any = None, **kwargs: Any) -> Any:
    """Give a model without rope scaling the generic rotary embedding: upstream's CPU factory knows only yarn."""
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    if rope_scaling is None and len(args) < 6:
        kwargs.pop("device", None)
        return get_rope(*args, rope_scaling=None, **kwargs)
    return original(*args, rope_scaling=rope_scaling, **kwargs)


def _absorbed_mla(attn: Any, forward_batch: Any) -> Any:
    """Attention path of ``torch_native``: absorbed MLA for prefill, cached prefix and decode alike."""
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    return AttnForwardMethod.MLA


def _plain_group(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensor-parallel ranks talk through gloo: the other communicators are made for CUDA devices."""
    cuda_only = ("use_pynccl", "use_custom_allreduce", "use_mscclpp", "use_torch_symm_mem_allreduce")
    return args, {**kwargs, **dict.fromkeys(cuda_only, False)}


def _build_kernels(result: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Compile while the server starts, not in its first request."""
    native.ready()
    return result


KERNEL_HOOKS = {
    "models.deepseek_v2.DeepseekV2Model.forward": decoder.model_forward,
    "layers.quantization.unquant.UnquantizedLinearMethod.apply": layers.linear_apply,
    "layers.logits_processor.LogitsProcessor._compute_lm_head": layers.compute_lm_head,
    "models.deepseek_v2.MoEGate.forward": layers.gate_forward,
    "layers.layernorm.RMSNorm.forward_native": layers.rms_norm,
    "layers.activation.SiluAndMul.forward_native": layers.silu_and_mul,
    "layers.moe.topk.grouped_topk": router.grouped_topk,
    "layers.moe.topk.biased_grouped_topk": router.biased_grouped_topk,
    f"{_MLA}.forward_absorb_prepare": attention.absorb_prepare,
    f"{_MLA}.forward_absorb_core": attention.absorb_core,
}
"""Below ``sglang.srt``: what runs on the CPU kernels, besides the experts (``hooks.HOOKS``)."""


def register_cpu_hooks() -> None:
    """Register the CPU hooks; call only where :func:`is_plain_cpu` holds."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.layers.rotary_embedding.base.RotaryEmbedding.__init__", _rotary_init, HookType.AROUND
    )
    HookRegistry.register("sglang.srt.layers.rotary_embedding.factory.get_rope_wrapper", _rope_wrapper, HookType.AROUND)
    HookRegistry.register(
        "sglang.srt.distributed.parallel_state.init_model_parallel_group", _plain_group, HookType.BEFORE
    )
    AttentionBackendRegistry.register("torch_native", _absorbed_mla)
    HookRegistry.register(
        "sglang.srt.models.deepseek_v2.DeepseekV2ForCausalLM.load_weights", decoder.after_load_weights, HookType.AFTER
    )
    HookRegistry.register(
        "sglang.srt.model_executor.model_runner.ModelRunner.load_model", _build_kernels, HookType.AFTER
    )
    for target, function in KERNEL_HOOKS.items():
        HookRegistry.register(f"sglang.srt.{target}", function, HookType.AROUND)
