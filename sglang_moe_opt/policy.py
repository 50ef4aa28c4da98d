"""`Policy`: the server's YAML file of skip profiles and limits. Pure (pydantic)."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from sglang_moe_opt.fields import FieldError, check_keys, show
from sglang_moe_opt.schedule import FULL, MAX_NA, Limits, ModelShape, PhasedSchedule, SkipSchedule

CUSTOM: Final = "custom"  # what a request's own schedule is called where profiles are
PHASES: Final = ("prefill", "decode")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNMODIFIED: Final = PhasedSchedule.uniform(SkipSchedule())


class PolicyError(FieldError):
    """A policy file that cannot be used: one line with the field, its value and what is allowed."""


class Consolidation(BaseModel):
    """Experts chosen jointly for a batch: each token's first `k0` stay, in batches of up to `max_batch` tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    k0: int = Field(ge=1, le=MAX_NA)
    max_batch: int = Field(ge=1)


class Policy(BaseModel):
    """Profiles, default and limits; profile "full" is the unmodified model and always exists.

    profiles: the rule of each name; default: the profile of requests without a hint; allow_custom: may requests bring
    their own schedule; min_na: floor of every request and profile (no floor exceeds the model's top-k);
    max_live_schedules: distinct custom schedules at a time; prune_plan: path of a plan; consolidation: see there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profiles: dict[str, InstanceOf[PhasedSchedule]] = Field(default_factory=dict)
    default: str = FULL
    allow_custom: bool = True
    min_na: int = Field(default=1, ge=0, le=MAX_NA)
    max_live_schedules: int = Field(default=64, ge=1)
    prune_plan: str | None = None
    consolidation: Consolidation | None = None

    @field_validator("profiles", mode="before")
    @classmethod
    def _parse_profiles(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise FieldError("profiles", value, "an object of profile name: rule")
        return {_check_name(name): _parse_profile(rule, f"profiles.{name}") for name, rule in value.items()}

    @model_validator(mode="after")
    def _default_exists(self) -> Policy:
        if self.default not in self.names:
            raise FieldError("default", self.default, "the profiles " + ", ".join(self.names))
        return self

    @field_serializer("profiles")
    def _dump_profiles(self, profiles: dict[str, PhasedSchedule]) -> dict[str, Any]:
        return {name: rule.to_object() or FULL for name, rule in profiles.items()}

    @classmethod
    def from_object(cls, value: object) -> Policy:
        """Validate the file's parsed content (None, an empty file, is all defaults). Raises PolicyError."""
        if not isinstance(value, dict | None):
            raise PolicyError("policy", value, "an object with the keys " + ", ".join(cls.model_fields))
        try:
            return cls.model_validate(value or {})
        except ValidationError as error:
            raise _policy_error(error) from None

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a YAML policy file. Raises PolicyError, also when the file is missing or not YAML."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PolicyError("policy file", str(path), f"a readable UTF-8 YAML file ({_one_line(error)})") from None
        return cls._from_text(text, str(path))

    @classmethod
    def builtin(cls) -> Policy:
        """The policy of a server that was given none."""
        return cls._from_text((resources.files(__package__) / "default_policy.yaml").read_text("utf-8"), "builtin")

    @classmethod
    def _from_text(cls, text: str, origin: str) -> Policy:
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise PolicyError("policy file", origin, f"YAML ({_one_line(error)})") from None
        return cls.from_object(content)

    @property
    def names(self) -> tuple[str, ...]:
        """Every profile a request may name, "full" first."""
        return (FULL, *self.profiles)

    def profile(self, name: str) -> PhasedSchedule:
        """The rule of a profile as written. Raises KeyError for an unknown name."""
        return _UNMODIFIED if name == FULL else self.profiles[name]

    def with_default(self, name: str) -> Policy:
        """The same policy with another default profile. Raises PolicyError if it is unknown."""
        if name not in self.names:
            raise PolicyError("default", name, "the profiles " + ", ".join(self.names))
        return self.model_copy(update={"default": name})

    def limits(self, shape: ModelShape) -> Limits:
        """What a rule may ask for on this model under this policy."""
        return Limits.of(shape, self.min_na)

    def check(self, shape: ModelShape) -> None:
        """Raise PolicyError unless every profile can run on this model within `min_na`."""
        limits = self.limits(shape)
        for name, rule in self.profiles.items():
            sides = {"": rule.prefill} if rule.prefill == rule.decode else {f".{p}": getattr(rule, p) for p in PHASES}
            for suffix, side in sides.items():
                try:
                    side.check(limits, f"profiles.{name}{suffix}")
                except FieldError as error:
                    raise PolicyError(error.field, error.value, error.allowed) from None


def parse_phases(
    value: dict[Any, Any], field: str, parse_side: Callable[[object, str, str], SkipSchedule], missing: PhasedSchedule
) -> PhasedSchedule:
    """Parse {"prefill": ..., "decode": ...}, each by parse_side(value, field, phase); an absent side is `missing`'s.

    Raises FieldError.
    """
    check_keys(value, field, PHASES)
    sides = {phase: getattr(missing, phase) for phase in PHASES}
    for phase, side in value.items():
        if isinstance(side, dict) and any(name in side for name in PHASES):
            raise FieldError(f"{field}.{phase}", side, "one rule, without prefill and decode inside")
        sides[phase] = parse_side(side, f"{field}.{phase}", phase)
    return PhasedSchedule(**sides)


def is_phased(value: object) -> bool:
    """Whether an object form names phases."""
    return isinstance(value, dict) and any(phase in value for phase in PHASES)


def _parse_profile(value: object, field: str) -> PhasedSchedule:
    """A profile's rule: "full", an object, or {prefill, decode} of those, an absent side being full."""
    if isinstance(value, PhasedSchedule):
        return value
    if isinstance(value, dict) and is_phased(value):
        return parse_phases(value, field, _parse_side, missing=_UNMODIFIED)
    return PhasedSchedule.uniform(_parse_side(value, field, ""))


def _parse_side(value: object, field: str, _phase: str) -> SkipSchedule:
    return SkipSchedule() if value == FULL else SkipSchedule.from_object(value, field)


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (FULL, CUSTOM):
        allowed = f"1 to 64 of A-Z a-z 0-9 . _ - (names {FULL} and {CUSTOM} are taken)"
        raise FieldError("profiles", name, allowed)
    return name


def _policy_error(error: ValidationError) -> PolicyError:
    """The first problem pydantic found, in our words."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, FieldError):
        return PolicyError(cause.field, cause.value, cause.allowed)
    field = ".".join(show(part)[1:-1] if isinstance(part, str) else str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model = Consolidation if len(first["loc"]) > 1 else Policy
        return PolicyError(field, first["input"], "only the keys " + ", ".join(model.model_fields))
    return PolicyError(field, first["input"], first["msg"].removeprefix("Input should be "))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
