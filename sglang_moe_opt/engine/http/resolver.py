"""The policy as the HTTP process knows it: from a request's hint to the schedule that it runs under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_moe_opt.engine.http.live import LiveSchedules
from sglang_moe_opt.engine.http.scope import current_request
from sglang_moe_opt.engine.request import WIRE_KEY
from sglang_moe_opt.hints import FIELD, HintError, ResolvedHint, resolve
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy

HINT_KEY = "moe_skip"


class WireHint(str):
    """A hint that this process has resolved: its text for the scheduler, with the schedule it stands for.

    A client can send text under the same key, but never this type.
    """

    hint: ResolvedHint

    @classmethod
    def of(cls, hint: ResolvedHint) -> WireHint:
        """The text of a hint."""
        text = cls(hint.key)
        text.hint = hint
        return text


@dataclass(frozen=True)
class Resolver:
    """Policy and model, and the custom schedules in flight. One for each policy: a reload makes a new one.

    Attributes:
        default: schedule of requests without a hint.
        start_default: the default that the schedulers know, from when the server was started.
        generation: 1 for the policy at the start, counted up by each reload that changed it.
    """

    policy: Policy
    shape: MoEShape
    default: ResolvedHint
    start_default: ResolvedHint
    live: LiveSchedules = field(compare=False)
    generation: int = 1

    @classmethod
    def create(cls, policy: Policy, shape: MoEShape) -> Resolver:
        """Of a server that starts. Raises PolicyError where the policy does not fit the model."""
        policy.check(shape)
        default = resolve(None, policy, shape)
        live = LiveSchedules(policy.max_live_schedules, policy.max_live_schedules_per_client)
        return cls(policy, shape, default, default, live)

    def profile_hints(self) -> dict[str, ResolvedHint]:
        """Every profile on this model, by name."""
        return {name: resolve(name, self.policy, self.shape) for name in self.policy.names}

    def admit(
        self, custom_params: Any, header: str | None = None, *, in_session: bool = False
    ) -> tuple[Any, ResolvedHint]:
        """Resolve the hint in a request's ``custom_params``; without one, that of the header, then the default.

        Args:
            custom_params: of the request.
            header: its ``x-moe-skip``.
            in_session: it continues on the KV cache of its session's earlier turns. Those ran under the default of the
                server's start, and so does every turn, whatever the default is now.

        Returns:
            ``custom_params`` as the scheduler shall get it, and the schedule.

        Raises:
            HintError: the hint is wrong.
        """
        params = custom_params if isinstance(custom_params, dict) else {}
        wire = params.get(WIRE_KEY)
        if isinstance(wire, WireHint):
            return custom_params, wire.hint
        if wire is not None:
            raise HintError(f"custom_params.{WIRE_KEY}", wire, "nothing: this key is internal, use moe_skip")
        value = params.get(HINT_KEY)
        if value is not None:
            hint = resolve(value, self.policy, self.shape, FIELD)
        elif header is not None:
            hint = resolve(header, self.policy, self.shape, "header x-moe-skip")
        else:
            hint = self.start_default if in_session else self.default
        if HINT_KEY not in params and hint is self.start_default:
            return custom_params, hint
        rest = {key: item for key, item in params.items() if key != HINT_KEY}
        return {**rest, WIRE_KEY: WireHint.of(hint)}, hint


_resolver: Resolver | None = None


def get_resolver() -> Resolver | None:
    """The policy of the request under way, or else of the process; None where skipping is not configured."""
    scope = current_request()
    return _resolver if scope is None or scope.resolver is None else scope.resolver


def set_resolver(resolver: Resolver | None) -> None:
    """Requests from now on meet this one."""
    global _resolver
    _resolver = resolver
