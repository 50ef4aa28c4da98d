"""What is active, in one event when the server starts."""

from __future__ import annotations

from typing import Any

import sglang_moe_opt
from sglang_moe_opt.engine.events import emit
from sglang_moe_opt.engine.http.resolver import Resolver
from sglang_moe_opt.engine.metrics import metrics_enabled
from sglang_moe_opt.engine.pruning.active import Pruning
from sglang_moe_opt.engine.settings import Settings


def announce(resolver: Resolver | None, pruning: Pruning | None, has_admin_key: bool) -> None:
    """Report it."""
    facts = active(resolver, pruning, has_admin_key)
    emit("server_started", "; ".join(f"{name} {_text(value)}" for name, value in facts.items()), **facts)


def active(resolver: Resolver | None, pruning: Pruning | None, has_admin_key: bool) -> dict[str, Any]:
    """What this server does beside SGLang, JSON-ready; ``resolver`` is None where only a plan is served."""
    facts: dict[str, Any] = {"version": sglang_moe_opt.__version__}
    if resolver is not None:
        policy = resolver.policy
        facts |= {
            "policy": Settings.from_env().policy_name,
            "profiles": list(policy.names),
            "default": policy.default,
            "custom_schedules": policy.max_live_schedules if policy.allow_custom else 0,
            "custom_schedules_per_client": policy.max_live_schedules_per_client,
            "consolidation": None if policy.consolidation is None else policy.consolidation.model_dump(),
        }
    return facts | {
        "plan": None if pruning is None else pruning.describe(),
        "metrics": metrics_enabled(),
        "reload": resolver is not None and has_admin_key,
    }


def _text(value: Any) -> str:
    if value is None or value is False:
        return "off"
    if value is True:
        return "on"
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
