"""Fast training kernels for CPUs with AVX-512 BF16, built on first use; plain torch operations elsewhere."""

from __future__ import annotations

import functools
import shutil
import warnings
from pathlib import Path

import torch

_SOURCES = ("experts.cpp", "attention.cpp", "loss.cpp", "bind.cpp")
_FLAGS = ["-O3", "-std=c++20", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"]


@functools.cache
def available() -> bool:
    """Build and load the kernels; False, with a warning, where processor or compiler are missing."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512") or "avx512_bf16" not in _cpu_flags():
        return False
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        warnings.warn("no g++ and ninja: training runs about three times slower without its kernels", stacklevel=2)
        return False
    from torch.utils.cpp_extension import load

    folder = Path(__file__).parent
    load(
        "reference_models_kernels",
        [str(folder / name) for name in _SOURCES],
        extra_cflags=_FLAGS,
        is_python_module=False,
    )
    _register()
    return True


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.exists() else ""


def _register() -> None:
    ops = torch.ops.reference_models

    @torch.library.register_fake("reference_models::experts_forward")
    def _(x, weights, indices, gate_up, down):
        slots = x.shape[0] * indices.shape[1]
        return x.new_empty(x.shape, dtype=torch.float32), x.new_empty(slots, gate_up.shape[1])

    @torch.library.register_fake("reference_models::experts_backward")
    def _(grad, x, weights, indices, gate_up, down, saved):
        return (
            x.new_empty(x.shape, dtype=torch.float32),
            torch.empty_like(weights),
            torch.empty_like(gate_up),
            torch.empty_like(down),
        )

    @torch.library.register_fake("reference_models::attention_forward")
    def _(q, k, v):
        return torch.empty_like(v), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)

    @torch.library.register_fake("reference_models::attention_backward")
    def _(grad, q, k, v, out, lse):
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    def experts_setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output[1])
        ctx.set_materialize_grads(False)

    def experts_backward(ctx, grad, _):
        x, weights, indices, gate_up, down, saved = ctx.saved_tensors
        dx, dweights, dgate_up, ddown = ops.experts_backward(
            grad.to(torch.bfloat16).contiguous(), x, weights, indices, gate_up, down, saved
        )
        return dx.to(torch.bfloat16), dweights, None, dgate_up, ddown

    def attention_setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs, *output)
        ctx.set_materialize_grads(False)

    def attention_backward(ctx, grad, _):
        return ops.attention_backward(grad.contiguous(), *ctx.saved_tensors)

    torch.library.register_autograd("reference_models::experts_forward", experts_backward, setup_context=experts_setup)
    torch.library.register_autograd(
        "reference_models::attention_forward", attention_backward, setup_context=attention_setup
    )
