"""Hooks that let the official CUDA wheel serve DeepSeek models where there is no accelerator, and on our kernels.

Upstream's own CPU engine (``SGLANG_USE_CPU_ENGINE=1``) needs a kernel library that is not on the registry;
without it every layer falls back to plain torch, except for the two places handled here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sglang_moe_opt.engine.cpu import native
from sglang_moe_opt.engine.cpu.hooks import HOOKS
from sglang_moe_opt.engine.hooks import register_hooks


@functools.cache
def is_plain_cpu() -> bool:
    """True where torch sees no accelerator and upstream's CPU kernel engine is not asked for."""
    import torch
    from sglang.srt.utils import is_cpu

    accelerators = (torch.cuda, getattr(torch, "xpu", None), getattr(torch, "mps", None))
    return not is_cpu() and not any(a is not None and a.is_available() for a in accelerators)


def rotary_init(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """AROUND ``RotaryEmbedding.__init__``: build it on its native torch path.

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


def rope_wrapper(original: Callable[..., Any], *args: Any, rope_scaling: Any = None, **kwargs: Any) -> Any:
    """AROUND ``get_rope_wrapper``: a model without rope scaling gets the generic rotary embedding.

    Upstream's CPU factory knows only yarn.
    """
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    if rope_scaling is None and len(args) < 6:
        kwargs.pop("device", None)
        return get_rope(*args, rope_scaling=None, **kwargs)
    return original(*args, rope_scaling=rope_scaling, **kwargs)


def _absorbed_mla(attn: Any, forward_batch: Any) -> Any:
    """Attention path of ``torch_native``: absorbed MLA for prefill, cached prefix and decode alike."""
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    return AttnForwardMethod.MLA


def plain_group(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """BEFORE ``init_model_parallel_group``: tensor-parallel ranks talk through gloo.

    The other communicators are made for CUDA devices.
    """
    cuda_only = ("use_pynccl", "use_custom_allreduce", "use_mscclpp", "use_torch_symm_mem_allreduce")
    return args, {**kwargs, **dict.fromkeys(cuda_only, False)}


def build_kernels(result: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """AFTER ``ModelRunner.load_model``: compile while the server starts, not in its first request."""
    native.ready()
    return result


def register_cpu_hooks() -> None:
    """Register the CPU hooks; call only where :func:`is_plain_cpu` holds."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry

    AttentionBackendRegistry.register("torch_native", _absorbed_mla)
    register_hooks(HOOKS)
