"""From a request's `moe_skip` hint to the schedule it runs under, checked against policy and model. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from sglang_moe_opt.auto import AUTO, AutoProfile, AutoRule, AutoSchedule
from sglang_moe_opt.fields import FieldError, check_keys, join_field
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.policy import CUSTOM, PHASES, Policy, is_phased, parse_phases
from sglang_moe_opt.schedule import OPTIONS, RULES, Limits, ModelShape, PhasedSchedule, SkipSchedule

FIELD: Final = "custom_params.moe_skip"  # where a hint is in a request's body
_UNMODIFIED: Final = PhasedSchedule.uniform(SkipSchedule())
_WIRE_KEYS: Final = ({"profile", "schedule"}, {"profile", "schedule", "levels", "auto"})


class HintError(FieldError):
    """A hint that is refused; `status` is the HTTP status: 400, or 429 when too many custom schedules are live."""

    def __init__(self, field: str, value: object, allowed: str, status: int = 400) -> None:
        super().__init__(field, value, allowed)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.allowed, self.status)


@dataclass(frozen=True)
class ResolvedHint:
    """A valid hint: its profile ("custom" for a request's own), the rules, and their tables on the model.

    levels: of an auto profile, what a generated token may run under, the gentlest first; `decode` is that one.
    """

    profile: str
    schedule: PhasedSchedule
    prefill: LayerTable
    decode: LayerTable
    levels: tuple[LayerTable, ...] = ()

    @classmethod
    def of(cls, profile: str, schedule: PhasedSchedule, shape: ModelShape) -> ResolvedHint:
        """Expand both phases. Raises FieldError where the model does not allow the schedule."""
        rules = schedule.levels if isinstance(schedule, AutoSchedule) else ()
        levels = tuple(rule.expand(shape) for rule in rules)
        return cls(profile, schedule, schedule.prefill.expand(shape), schedule.decode.expand(shape), levels)

    @cached_property
    def key(self) -> str:
        """Says profile and rules: equal for equal hints, also in other processes."""
        return self.to_wire()

    @property
    def is_custom(self) -> bool:
        return self.profile == CUSTOM

    @property
    def is_full(self) -> bool:
        """Both phases run the unmodified model."""
        return self.prefill.is_full and self.decode.is_full and not self.levels

    @property
    def is_one_schedule(self) -> bool:
        """Prompt and generated tokens always run the same, so that both may serve later prompts from the cache."""
        return self.prefill.digest == self.decode.digest and not self.levels

    @property
    def is_dynamic(self) -> bool:
        """How many experts a token gets depends on its weights, or on the batch."""
        return bool(self.levels) or not (self.prefill.is_static and self.decode.is_static)

    @property
    def mean_na(self) -> float | dict[str, float]:
        """Mean experts per MoE layer (an upper bound where `is_dynamic`); by phase where the phases differ."""
        prefill, decode = self.prefill.mean_na, self.decode.mean_na
        return prefill if prefill == decode else {"prefill": prefill, "decode": decode}

    def to_wire(self) -> str:
        """Compact JSON that `from_wire` turns into an equal hint in another process.

        It says all that the hint does, also how an auto profile chooses: the other process needs no policy for it, and
        a request keeps its schedule when the policy is reloaded.
        """
        sides = PhasedSchedule(self.schedule.prefill, self.schedule.decode)
        content: dict[str, Any] = {"profile": self.profile, "schedule": sides.to_object()}
        if isinstance(self.schedule, AutoProfile):
            content["levels"] = [rule.to_object() for rule in self.schedule.levels]
            content["auto"] = self.schedule.rule.to_wire()
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_wire(cls, text: str, shape: ModelShape) -> ResolvedHint:
        """Parse `to_wire`'s text, the policy having been applied before. Raises HintError."""
        try:
            content = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise HintError("wire", text, "the JSON of ResolvedHint.to_wire") from None
        if not isinstance(content, dict) or set(content) not in _WIRE_KEYS:
            raise HintError("wire", content, "the keys profile and schedule, and levels and auto of an auto profile")
        if not isinstance(content["profile"], str):
            raise HintError("wire.profile", content["profile"], "a string")
        try:
            schedule = _parse_wire_schedule(content["schedule"], "wire.schedule", Limits.of(shape))
            if "auto" in content:
                schedule = _parse_wire_auto(content, schedule, Limits.of(shape))
            return cls.of(content["profile"], schedule, shape)
        except FieldError as error:
            raise _hint_error(error) from None


def resolve(hint: object, policy: Policy, shape: ModelShape, field: str = FIELD) -> ResolvedHint:
    """Check a hint (a profile's name, an object, or None for the policy's default) and expand it on the model.

    `field` is what errors call the hint. Raises HintError, and nothing else whatever the hint is.
    """
    try:
        if hint is None or isinstance(hint, str):
            return _resolve_profile(policy.default if hint is None else hint, policy, shape, field)
        if isinstance(hint, dict) and "profile" in hint:
            return _resolve_profile(_named_profile(hint, field), policy, shape, join_field(field, "profile"))
        if not isinstance(hint, dict) or not policy.allow_custom:
            names = "a profile: " + ", ".join(policy.names)
            rules = ", or an object with exactly one of profile, " + ", ".join(RULES) + ", or with prefill and decode"
            raise HintError(field, hint, names + rules * policy.allow_custom)
        schedule = _parse_custom(hint, policy, shape, field)
        return ResolvedHint.of(CUSTOM, schedule.with_floor(policy.limits(shape).min_na), shape)
    except HintError:
        raise
    except FieldError as error:
        raise _hint_error(error) from None


def _resolve_profile(name: object, policy: Policy, shape: ModelShape, field: str) -> ResolvedHint:
    schedule = _profile_schedule(name, policy, field)
    limits = policy.limits(shape)
    schedule.prefill.check(limits, f"profiles.{name}")
    schedule.decode.check(limits, f"profiles.{name}")
    return ResolvedHint.of(str(name), schedule.with_floor(limits.min_na), shape)


def _profile_schedule(name: object, policy: Policy, field: str) -> PhasedSchedule:
    if not isinstance(name, str) or name not in policy.names:
        raise HintError(field, name, "the profiles " + ", ".join(policy.names))
    return policy.profile(name)


def _named_profile(hint: dict[Any, Any], field: str) -> object:
    check_keys(hint, field, ("profile",))
    return hint["profile"]


def _parse_custom(hint: dict[Any, Any], policy: Policy, shape: ModelShape, field: str) -> PhasedSchedule:
    limits = policy.limits(shape)
    _refuse_auto(hint, field, policy)
    check_keys(hint, field, ("profile", *PHASES, *RULES, *OPTIONS))
    if not is_phased(hint):
        return PhasedSchedule.uniform(_own_rule(hint, field, limits, policy))

    def parse_side(side: object, side_field: str, phase: str) -> SkipSchedule:
        name = side
        if isinstance(side, dict):
            _refuse_auto(side, side_field, policy)
            if "profile" not in side:
                return _own_rule(side, side_field, limits, policy)
            name = _named_profile(side, side_field)
        whole = _profile_schedule(name, policy, side_field)
        if isinstance(whole, AutoProfile):
            raise HintError(side_field, name, "no auto profile: it has both phases, name it alone")
        schedule: SkipSchedule = getattr(whole, phase)
        schedule.check(limits, f"profiles.{name}")
        return schedule

    missing = policy.profile(policy.default)
    if isinstance(missing, AutoProfile) and "decode" not in hint:
        raise HintError(
            join_field(field, "decode"), None, f"a rule, as the default profile {policy.default} has no single one"
        )
    return parse_phases(hint, field, parse_side, missing=missing)


def _refuse_auto(hint: dict[Any, Any], field: str, policy: Policy) -> None:
    if AUTO in hint:
        names = ", ".join(policy.autos) or "it has none"
        raise HintError(join_field(field, AUTO), hint[AUTO], f"nothing: auto profiles are the policy's ({names})")


def _own_rule(value: object, field: str, limits: Limits, policy: Policy) -> SkipSchedule:
    """A request's own rule; it may consolidate only where the policy lets requests do so."""
    rule = SkipSchedule.from_object(value, field, limits)
    if rule.consolidate is None:
        return rule
    if policy.consolidation is None or not policy.consolidation.allow_custom:
        allowed = "only by a profile: the policy does not set consolidation.allow_custom"
        raise FieldError(join_field(field, "consolidate"), rule.consolidate, allowed)
    rule = rule.with_k0(policy.consolidation.k0)
    rule.check(limits, field)
    return rule


def _parse_wire_schedule(value: object, field: str, limits: Limits) -> PhasedSchedule:
    def parse_side(side: object, side_field: str, _phase: str) -> SkipSchedule:
        return SkipSchedule() if side == {} else SkipSchedule.from_object(side, side_field, limits)

    if isinstance(value, dict) and is_phased(value):
        return parse_phases(value, field, parse_side, missing=_UNMODIFIED)
    return PhasedSchedule.uniform(parse_side(value, field, ""))


def _parse_wire_auto(content: dict[str, Any], schedule: PhasedSchedule, limits: Limits) -> AutoProfile:
    rule, value = AutoRule.from_wire(content["auto"], "wire.auto"), content["levels"]
    if not isinstance(value, list) or not value or len(value) != len(rule.levels):
        raise HintError("wire.levels", value, f"a list of {len(rule.levels)} rules")
    levels = tuple(_parse_wire_schedule(level, "wire.levels", limits).decode for level in value)
    return AutoProfile(schedule.prefill, levels[0], levels, rule)


def _hint_error(error: FieldError) -> HintError:
    return HintError(error.field, error.value, error.allowed)
