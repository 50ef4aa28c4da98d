"""The server flags that the plugin adds to ``sglang serve``, and what it refuses before anything is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from sglang_moe_opt.engine.pruning import adopt_stored_plan, get_pruning
from sglang_moe_opt.engine.pruning.check import check_server
from sglang_moe_opt.engine.settings import BUILTIN, CONFIG_ENV, DEFAULT_ENV, LOG_ENV, LOGS, PRUNE_ENV, Settings
from sglang_moe_opt.engine.unsupported import OTHER_BACKENDS, Refusal, UnsupportedError, refuse

_FLAGS = {
    "moe_opt_config": CONFIG_ENV,
    "moe_skip_default": DEFAULT_ENV,
    "moe_prune_plan": PRUNE_ENV,
    "moe_opt_log": LOG_ENV,
}
_PATHS = ("moe_opt_config", "moe_prune_plan")


def add_cli_args(result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER ``ServerArgs.add_cli_args``."""
    group = parser.add_argument_group("sglang-moe-opt")
    group.add_argument(
        "--moe-opt-config",
        metavar="FILE",
        help=f"Policy file with skip profiles, or '{BUILTIN}'. Switches expert skipping on (env {CONFIG_ENV}).",
    )
    group.add_argument(
        "--moe-skip-default",
        metavar="PROFILE",
        help=f"Profile of requests without a hint; overrides the policy's default (env {DEFAULT_ENV}).",
    )
    group.add_argument(
        "--moe-prune-plan",
        metavar="FILE",
        help=f"Plan of the experts to serve; the others are not loaded. Overrides the policy's (env {PRUNE_ENV}).",
    )
    group.add_argument(
        "--moe-opt-log",
        metavar="FORMAT",
        help=f"How this plugin reports: {' or '.join(LOGS)}, one object a line on stderr (env {LOG_ENV}).",
    )


def from_cli_args(cls: type, args: argparse.Namespace) -> None:
    """BEFORE ``ServerArgs.from_cli_args``: hand our flags to every process through the environment."""
    for name, variable in _FLAGS.items():
        value = getattr(args, name, None)
        if value:
            os.environ[variable] = os.path.abspath(value) if name in _PATHS and value != BUILTIN else value


def prepare_server_args(server_args: Any, argv: list[str]) -> None:
    """AFTER ``prepare_server_args``: end with one line where policy, plan or the combination of flags cannot work."""
    settings = Settings.from_env()
    try:
        settings.check()
        if settings.enabled:
            settings.load_policy()
            refuse_unsupported(server_args)
        adopt_stored_plan(server_args.model_path)
        if (pruning := get_pruning()) is not None:
            from sglang.srt.arg_groups.overrides import model_config_of

            check_server(pruning, server_args, model_config_of(server_args))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def refuse_unsupported(server_args: Any) -> None:
    """Check the engine's flags against what the hooks can reach.

    Raises:
        UnsupportedError: naming the flag, its value and what to set instead.
    """
    refuse(server_args, "expert skipping", _REFUSED)
    if os.environ.get("SGLANG_RUST_SERVER", "0").lower() in ("1", "true"):
        raise UnsupportedError("expert skipping does not work with SGLANG_RUST_SERVER=1: unset it (hints need Python)")


_REFUSED: tuple[Refusal, ...] = (
    OTHER_BACKENDS,
    (
        "tokenizer_worker_num",
        lambda v: (v or 1) > 1,
        "extra tokenizer workers do not load plugins and would ignore hints; set --tokenizer-worker-num 1",
    ),
    (
        "enable_dp_attention",
        bool,
        "token schedules are not gathered across data-parallel ranks yet; leave the flag out",
    ),
    (
        "attn_dp_size",
        lambda v: (v or 1) > 1,
        "token schedules are not gathered across data-parallel ranks yet; leave the flag out",
    ),
    (
        "speculative_algorithm",
        bool,
        "draft and verify passes do not carry schedules yet; leave the flag out",
    ),
    ("enable_two_batch_overlap", bool, "micro-batches do not carry schedules yet; leave the flag out"),
    ("attn_cp_size", lambda v: (v or 1) > 1, "context parallelism reorders tokens; set --attn-cp-size 1"),
)
