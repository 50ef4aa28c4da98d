"""The next policy of a running server: read from its file, checked whole, and only then met by new requests.

Nothing is sent to the schedulers. A request carries the tables that it runs under, so that those under way keep theirs,
every rank sees the same, and the cache namespace, which is the digest of a table, follows the definition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sglang_moe_opt.engine.http.resolver import Resolver
from sglang_moe_opt.engine.rows import check_capacity
from sglang_moe_opt.engine.settings import BUILTIN, CONFIG_ENV, Settings
from sglang_moe_opt.hints import resolve
from sglang_moe_opt.policy import Consolidation, Policy, PolicyError

_IN_THE_ENGINE = tuple(name for name in Consolidation.model_fields if name not in ("k0", "allow_custom"))
"""What of consolidation lies in buffers and captured graphs; the rest is applied to requests."""


@dataclass(frozen=True)
class Change:
    """What a policy changes in another: names of profiles, and the names of other fields."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    redefined: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def between(cls, before: Policy, after: Policy) -> Change:
        """From one to the other; a profile that is spelled otherwise counts as redefined."""
        old, new = before.profiles, after.profiles
        others = [name for name in Policy.model_fields if name != "profiles"]
        return cls(
            tuple(name for name in new if name not in old),
            tuple(name for name in old if name not in new),
            tuple(name for name in new if name in old and new[name] != old[name]),
            tuple(name for name in others if getattr(before, name) != getattr(after, name)),
        )

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def to_object(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: list(names) for name, names in vars(self).items()}


def successor(current: Resolver, settings: Settings) -> tuple[Resolver, Change]:
    """Read the policy file anew; itself where nothing changed.

    Raises:
        PolicyError: the file is no policy, does not fit the model, or changes what only a new start can change.
    """
    if settings.config in (None, BUILTIN):
        raise PolicyError("policy file", BUILTIN, f"a file to read anew: start with --moe-opt-config or {CONFIG_ENV}")
    policy = settings.load_policy()
    policy.check(current.shape)
    change = Change.between(current.policy, policy)
    if not change:
        return current, change
    _refuse_fixed(current.policy, policy)
    default = resolve(None, policy, current.shape)
    if default == current.start_default:
        default = current.start_default
    after = replace(current, policy=policy, default=default, generation=current.generation + 1)
    _check_rows(after)
    return after, change


def adopt(resolver: Resolver) -> None:
    """Let the limits of this policy hold. Schedules in flight beyond them run to their end."""
    resolver.live.limit = resolver.policy.max_live_schedules
    resolver.live.per_client = resolver.policy.max_live_schedules_per_client


def _check_rows(after: Resolver) -> None:
    """Beside the new policy's schedules, those of requests in flight need rows of the schedule table."""
    others = after.live.in_flight.profiles_beside(after.profile_hints().values())
    check_capacity(after.policy, others + max(0, len(after.live) - after.policy.max_live_schedules))


def _refuse_fixed(before: Policy, after: Policy) -> None:
    if after.prune_plan != before.prune_plan:
        raise PolicyError("prune_plan", after.prune_plan, f"{before.prune_plan!r}: experts are loaded at the start")
    old, new = before.consolidation, after.consolidation
    if old is None or new is None:
        if old is not new:
            allowed = "null" if old is None else "an object"
            raise PolicyError("consolidation", _dumped(new), f"{allowed}: it is switched on or off at the start")
        return
    for name in _IN_THE_ENGINE:
        was, value = getattr(old, name), getattr(new, name)
        if value != was:
            raise PolicyError(f"consolidation.{name}", value, f"{was!r}: the running engine was built with it")


def _dumped(consolidation: Consolidation | None) -> dict[str, Any] | None:
    return None if consolidation is None else consolidation.model_dump()
