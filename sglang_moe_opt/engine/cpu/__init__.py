"""What SGLang needs to serve DeepSeek models on a plain CPU (no CUDA, no AMX kernel library)."""

from sglang_moe_opt.engine.cpu.support import is_plain_cpu, register_cpu_hooks

__all__ = ["is_plain_cpu", "register_cpu_hooks"]
