"""The SGLang plugin: what ``sglang.srt.plugins`` calls in every process of the engine before it starts."""

from __future__ import annotations

import os

# Not imported from settings: whatever is broken may be there.
CONFIGURED_BY = tuple(f"SGLANG_MOE_OPT_{name}" for name in ("CONFIG", "SKIP_DEFAULT", "PRUNE_PLAN", "CALIBRATE"))


def register() -> None:
    """Register the hooks. Without a policy they leave the engine as it is; on a plain CPU they let it serve at all.

    Raises:
        SystemExit: the plugin is broken although a policy, a plan or a calibration is asked for. SGLang logs a plugin's
            exceptions where nobody sees them and would go on to serve the full model, or record nothing.
    """
    try:
        from sglang_moe_opt.engine import calibration
        from sglang_moe_opt.engine.cpu import is_plain_cpu, register_cpu_hooks
        from sglang_moe_opt.engine.hooks import register_hooks

        if is_plain_cpu():
            register_cpu_hooks()
        register_hooks()
        if calibration.is_on():
            from sglang_moe_opt.engine.calibration.hooks import HOOKS

            register_hooks(HOOKS)
    except Exception as error:
        if any(os.environ.get(name) for name in CONFIGURED_BY):
            raise SystemExit(f"error: sglang-moe-opt cannot be loaded: {error!r}") from error
        raise
