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
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from sglang_moe_opt.auto import AUTO, AutoProfile
from sglang_moe_opt.fields import FieldError, check_keys, show_key
from sglang_moe_opt.files import read_text
from sglang_moe_opt.schedule import FULL, MAX_NA, Limits, ModelShape, PhasedSchedule, SkipSchedule

CUSTOM: Final = "custom"  # what a request's own schedule is called where profiles are
PHASES: Final = ("prefill", "decode")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNMODIFIED: Final = PhasedSchedule.uniform(SkipSchedule())
MAX_BYTES: Final = 1 << 20  # of a policy file
MAX_CONSOLIDATED: Final = 512  # tokens: one kernel program walks through all of them


class PolicyError(FieldError):
    """A policy file that cannot be used: one line with the field, its value and what is allowed."""


class Consolidation(BaseModel):
    """Batch-aware consolidation of the profiles that ask for it, in decode steps of up to `max_batch` tokens.

    k0: own experts of a token where a profile says `consolidate: true`; max_batch: steps with more tokens run the rule
    plainly; max_experts: up to so many distinct experts, a step also computes those that its consolidating tokens want
    most (None: only the tokens' own first k0); min_share: least share of a token's largest routed weight for an expert
    that fills a slot; stay_in_groups: under a group-limited router, whether a slot is filled only from groups that the
    token's router chose from; allow_custom: may requests consolidate in a schedule of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    k0: int = Field(default=3, ge=1, le=MAX_NA)
    max_batch: int = Field(default=64, ge=1, le=MAX_CONSOLIDATED)
    max_experts: int | None = Field(default=None, ge=1)
    min_share: float = Field(default=0.0, ge=0, le=1)
    stay_in_groups: bool = False
    allow_custom: bool = False


class Policy(BaseModel):
    """Profiles, default and limits; profile "full" is the unmodified model and always exists.

    profiles: the rule of each name; default: the profile of requests without a hint; allow_custom: may requests bring
    their own schedule; min_na: floor of every request and profile (no floor exceeds the model's top-k);
    max_live_schedules: distinct custom schedules at a time; max_live_schedules_per_client: the same of one client, by
    its address; prune_plan: path of a plan; consolidation: how profiles consolidate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profiles: dict[str, InstanceOf[PhasedSchedule]] = Field(default_factory=dict)
    default: str = FULL
    allow_custom: bool = True
    min_na: int = Field(default=1, ge=0, le=MAX_NA)
    max_live_schedules: int = Field(default=64, ge=1)
    max_live_schedules_per_client: int | None = Field(default=None, ge=1)
    prune_plan: str | None = None
    consolidation: Consolidation | None = None

    @field_validator("profiles", mode="before")
    @classmethod
    def _parse_profiles(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, dict):
            raise FieldError("profiles", value, "an object of profile name: rule")
        names = [_check_name(name) for name in value]
        plain = {name: _parse_profile(value[name], f"profiles.{name}") for name in names if not _is_auto(value[name])}
        levels, folder = {FULL: _UNMODIFIED, **plain}, (info.context or {}).get("folder", Path())
        autos = {name: _parse_auto(value[name], name, levels, folder) for name in names if name not in plain}
        return {name: (plain | autos)[name] for name in names}  # in the file's order

    @model_validator(mode="after")
    def _default_exists(self) -> Policy:
        if self.default not in self.names:
            raise FieldError("default", self.default, "the profiles " + ", ".join(self.names))
        return self

    @model_validator(mode="after")
    def _resolve_consolidation(self) -> Policy:
        for name, rule in self.profiles.items():
            if rule.decode.consolidate is not None and self.consolidation is None:
                allowed = "only in a policy with consolidation, such as consolidation: {k0: 3}"
                raise FieldError(f"profiles.{name}.consolidate", rule.decode.consolidate, allowed)
        if self.consolidation is not None:
            k0 = self.consolidation.k0
            object.__setattr__(self, "profiles", {name: rule.with_k0(k0) for name, rule in self.profiles.items()})
        return self

    @field_serializer("profiles")
    def _dump_profiles(self, profiles: dict[str, PhasedSchedule]) -> dict[str, Any]:
        return {name: rule.to_object() or FULL for name, rule in profiles.items()}

    @classmethod
    def from_object(cls, value: object, folder: Path = Path()) -> Policy:
        """Validate the file's parsed content (None, an empty file, is all defaults). Raises PolicyError.

        `folder` is where the paths of load tests start, which are read here.
        """
        if not isinstance(value, dict | None):
            raise PolicyError("policy", value, "an object with the keys " + ", ".join(cls.model_fields))
        try:
            return cls.model_validate(value or {}, context={"folder": folder})
        except ValidationError as error:
            raise _policy_error(error) from None

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a YAML policy file. Raises PolicyError, also when the file is missing or not YAML."""
        try:
            text = read_text(Path(path), MAX_BYTES)
        except (OSError, ValueError) as error:
            raise PolicyError("policy file", str(path), f"a readable UTF-8 YAML file ({_one_line(error)})") from None
        return cls._from_text(text, str(path), Path(path).absolute().parent)

    @classmethod
    def builtin(cls) -> Policy:
        """The policy of a server that was given none."""
        return cls._from_text((resources.files(__package__) / "default_policy.yaml").read_text("utf-8"), "builtin")

    @classmethod
    def _from_text(cls, text: str, origin: str, folder: Path = Path()) -> Policy:
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise PolicyError("policy file", origin, f"YAML ({_one_line(error)})") from None
        return cls.from_object(content, folder)

    @property
    def names(self) -> tuple[str, ...]:
        """Every profile a request may name, "full" first."""
        return (FULL, *self.profiles)

    def profile(self, name: str) -> PhasedSchedule:
        """The rule of a profile as written. Raises KeyError for an unknown name."""
        return _UNMODIFIED if name == FULL else self.profiles[name]

    @property
    def autos(self) -> dict[str, AutoProfile]:
        """The auto profiles by name."""
        return {name: rule for name, rule in self.profiles.items() if isinstance(rule, AutoProfile)}

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
            one_rule = rule.prefill == rule.decode.plain()
            sides = {"": rule.decode} if one_rule else {f".{p}": getattr(rule, p) for p in PHASES}
            for suffix, side in sides.items():
                try:
                    side.check(limits, f"profiles.{name}{suffix}")
                except FieldError as error:
                    raise PolicyError(error.field, error.value, error.allowed) from None
        for name, auto in self.autos.items():
            try:
                auto.check_order(shape, f"profiles.{name}.{AUTO}")
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
        if phase == "prefill" and isinstance(side, dict) and "consolidate" in side:
            raise FieldError(f"{field}.prefill.consolidate", side["consolidate"], "only in decode: leave the key out")
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


def _is_auto(value: object) -> bool:
    return isinstance(value, AutoProfile) or (isinstance(value, dict) and AUTO in value)


def _parse_auto(value: Any, name: str, levels: dict[str, PhasedSchedule], folder: Path) -> AutoProfile:
    if isinstance(value, AutoProfile):
        return value
    check_keys(value, f"profiles.{name}", (AUTO,))
    return AutoProfile.from_object(value[AUTO], f"profiles.{name}.{AUTO}", levels, folder)


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
    field = ".".join(show_key(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model = Consolidation if len(first["loc"]) > 1 else Policy
        return PolicyError(field, first["input"], "only the keys " + ", ".join(model.model_fields))
    return PolicyError(field, first["input"], first["msg"].removeprefix("Input should be "))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
