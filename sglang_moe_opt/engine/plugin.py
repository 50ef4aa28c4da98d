"""The SGLang plugin: what ``sglang.srt.plugins`` calls in every process of the engine before it starts."""

from __future__ import annotations

import os

# Not imported from settings: whatever is broken may be there.
CONFIGURED_BY = ("SGLANG_MOE_OPT_CONFIG", "SGLANG_MOE_OPT_SKIP_DEFAULT", "SGLANG_MOE_OPT_PRUNE_PLAN")


def register() -> None:
    """Register the hooks. Without a policy they leave the engine as it is; on a plain CPU they let it serve at all.

    Raises:
        SystemExit: the plugin is broken although a policy or a plan is configured. SGLang logs a plugin's exceptions
            where nobody sees them and would go on to serve the full model to clients that asked for less.
    """
    try:
        from sglang_moe_opt.engine.cpu import is_plain_cpu, register_cpu_hooks
        from sglang_moe_opt.engine.hooks import register_hooks

        if is_plain_cpu():
            register_cpu_hooks()
        register_hooks()
    except Exception as error:
        if any(os.environ.get(name) for name in CONFIGURED_BY):
            raise SystemExit(f"error: sglang-moe-opt cannot be loaded: {error!r}") from error
        raise
