"""The SGLang plugin: what ``sglang.srt.plugins`` calls in every process of the engine before it starts."""

from __future__ import annotations

import logging
import os
import sys

from sglang_moe_opt import quick_imports
from sglang_moe_opt.sglang_version import refusal

logger = logging.getLogger(__name__)

# Not imported from settings: whatever is broken may be there.
FLAGS = ("--moe-opt-config", "--moe-skip-default", "--moe-prune-plan", "--moe-opt-log")
CONFIGURED_BY = tuple(f"SGLANG_MOE_OPT_{name}" for name in ("CONFIG", "SKIP_DEFAULT", "PRUNE_PLAN", "CALIBRATE"))


def register() -> None:
    """Register the hooks. Without a policy they leave the engine as it is; on a plain CPU they let it serve at all.

    With an SGLang that is not supported nothing is registered, and nothing in its detokenizer, where nothing is hooked.

    Raises:
        SystemExit: SGLang is not supported, or the plugin is broken, and a policy, a plan or a calibration is asked
            for. SGLang logs a plugin's exceptions where nobody sees them and would go on to serve the full model, or
            record nothing.
    """
    quick_imports.end()
    if reason := refusal():
        if is_configured():
            raise SystemExit(f"error: {reason}")
        logger.warning("%s; SGLang is left as it is", reason)
        return
    if is_detokenizer():
        return
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
        if is_configured():
            raise SystemExit(f"error: sglang-moe-opt cannot be loaded: {error!r}") from error
        raise


def is_detokenizer() -> bool:
    """Whether this process only turns ids into text: hooks would have it import the whole engine, for seconds."""
    import setproctitle

    return setproctitle.getproctitle().startswith("sglang::detokenizer")


def is_configured() -> bool:
    """Whether a policy, plan or calibration is asked for: in the environment or, unread yet, on the command line."""
    on_command_line = any(argument.split("=", 1)[0] in FLAGS for argument in sys.argv[1:])
    return on_command_line or any(os.environ.get(name) for name in CONFIGURED_BY)
