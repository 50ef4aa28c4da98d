"""An auto profile as the policy file writes it, and the schedules it chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.auto.controller import Controller
from sglang_moe_opt.auto.measured import read_curves
from sglang_moe_opt.auto.speedup import Curve, SpeedModel, predict
from sglang_moe_opt.fields import FieldError, check_keys, is_int, is_number
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import Machine
from sglang_moe_opt.schedule import FULL, WEIGHT_RULES, ModelShape, PhasedSchedule, SkipSchedule

AUTO: Final = "auto"
"""Key of a profile that holds an auto rule."""
KEYS: Final = ("levels", "speedup", "machine", "context", "prefill", "min_gain", "hold_steps")
MACHINE_KEYS: Final = ("read_gb_s", "peak_tflops")
MAX_LEVELS: Final = 16
MAX_TOKENS: Final = 1 << 20


@dataclass(frozen=True)
class AutoSchedule(PhasedSchedule):
    """A prefill rule, and the decode rules of which each step runs one, the gentlest first; `decode` is that one."""

    levels: tuple[SkipSchedule, ...] = ()

    def with_floor(self, min_na: int) -> AutoSchedule:
        """Every magnitude rule keeps at least `min_na` experts."""
        levels = tuple(level.with_floor(min_na) for level in self.levels)
        return replace(self, prefill=self.prefill.with_floor(min_na), decode=levels[0], levels=levels)

    def with_k0(self, k0: int) -> AutoSchedule:
        """Every level's `consolidate` of true replaced by `k0`."""
        levels = tuple(level.with_k0(k0) for level in self.levels)
        return replace(self, decode=levels[0], levels=levels)


@dataclass(frozen=True)
class AutoRule:
    """What the policy says of the choice; see `Controller` and docs/policy.md.

    levels: names of profiles, the gentlest first. speedup: curve of each level, or None: predicted for `machine`, with
    `context` cached tokens of a sequence. min_gain, hold_steps: of the controller.
    """

    levels: tuple[str, ...]
    speedup: tuple[Curve, ...] | None = None
    machine: Machine | None = None
    context: int = 1024
    min_gain: float = 1.03
    hold_steps: int = 8

    def to_wire(self) -> dict[str, Any]:
        """JSON-ready form that `from_wire` turns into an equal rule in another process."""
        machine = None if self.machine is None else [self.machine.read_bandwidth, self.machine.peak_flops]
        return {**vars(self), "machine": machine}

    @classmethod
    def from_wire(cls, value: object, field: str) -> AutoRule:
        """Parse `to_wire`'s form, the policy having been read before. Raises FieldError."""
        if not isinstance(value, dict) or set(value) != set(vars(_DEFAULT)):
            raise FieldError(field, value, "the form of AutoRule.to_wire")
        try:
            curves = value["speedup"]
            return cls(
                levels=tuple(str(name) for name in value["levels"]),
                speedup=None if curves is None else tuple(tuple((int(n), float(x)) for n, x in c) for c in curves),
                machine=None if value["machine"] is None else Machine(*map(float, value["machine"])),
                context=int(value["context"]),
                min_gain=float(value["min_gain"]),
                hold_steps=int(value["hold_steps"]),
            )
        except (TypeError, ValueError) as error:
            raise FieldError(field, value, f"the form of AutoRule.to_wire ({error})") from None


_DEFAULT: Final = AutoRule(())


@dataclass(frozen=True)
class AutoProfile(AutoSchedule):
    """An auto profile of a policy: its schedules and how to choose among them."""

    rule: AutoRule = _DEFAULT

    @classmethod
    def from_object(
        cls, value: object, field: str, profiles: Mapping[str, PhasedSchedule], folder: Path
    ) -> AutoProfile:
        """Parse what stands under `auto` in a policy file.

        Args:
            field: what errors call it.
            profiles: what levels may name, "full" included.
            folder: where the path of a load test's summary starts.

        Raises:
            FieldError: naming field, value and what is allowed.
        """
        if not isinstance(value, dict):
            raise FieldError(field, value, "an object with the keys " + ", ".join(KEYS))
        check_keys(value, field, KEYS)
        names = _levels(value.get("levels"), f"{field}.levels", profiles)
        levels = tuple(profiles[name].decode for name in names)
        min_gain, hold_steps, context = (
            value.get(key, getattr(_DEFAULT, key)) for key in ("min_gain", "hold_steps", "context")
        )
        if not is_number(min_gain) or not 1 <= min_gain <= 100:
            raise FieldError(f"{field}.min_gain", min_gain, "a number from 1 to 100: how many times as fast")
        for key, number in (("hold_steps", hold_steps), ("context", context)):
            if not is_int(number) or not 1 <= number <= MAX_TOKENS:
                raise FieldError(f"{field}.{key}", number, f"an integer from 1 to {MAX_TOKENS}")
        machine = _machine(value["machine"], f"{field}.machine") if value.get("machine") is not None else None
        speedup = _speedup(value.get("speedup"), f"{field}.speedup", dict(zip(names, levels, strict=True)), folder)
        if speedup is None:
            _check_predictable(machine, field, dict(zip(names, levels, strict=True)))
        rule = AutoRule(names, speedup, machine, context, float(min_gain), hold_steps)
        return cls(_prefill(value.get("prefill", FULL), f"{field}.prefill", profiles), levels[0], levels, rule)

    def to_object(self) -> dict[str, Any]:
        """The form that `from_object` parses back, under the key `auto`; a summary's path is the curves read there."""
        rule = self.rule
        written: dict[str, Any] = {"levels": list(rule.levels), "prefill": self.prefill.to_object() or FULL}
        if rule.speedup is not None:
            written["speedup"] = {name: dict(c) for name, c in zip(rule.levels, rule.speedup, strict=True)}
        if rule.machine is not None:
            rates = (rule.machine.read_bandwidth / 1e9, rule.machine.peak_flops / 1e12)
            written["machine"] = dict(zip(MACHINE_KEYS, rates, strict=True))
        written |= {key: getattr(rule, key) for key in ("context", "min_gain", "hold_steps")}
        return {AUTO: written}

    def check_order(self, shape: ModelShape, field: str) -> None:
        """Raise FieldError unless no level computes more experts than the one before it."""
        tables = [level.expand(shape) for level in self.levels]
        for name, (one, other) in zip(self.rule.levels[1:], pairwise(tables), strict=True):
            if one.is_static and other.is_static and other.mean_na > one.mean_na:
                why = f"{name} computes {other.mean_na:g} experts after {one.mean_na:g}"
                raise FieldError(f"{field}.levels", list(self.rule.levels), f"gentlest to cheapest ({why})")

    def speed_model(self, shape: MoEShape, min_na: int) -> SpeedModel:
        """What the levels gain on a model, under a policy's floor."""
        rule = self.rule
        tables = [level.expand(shape) for level in self.with_floor(min_na).levels]
        curves = rule.speedup
        if curves is None and rule.machine is not None:
            curves = tuple(predict(shape, table, rule.machine, rule.context) for table in tables)
        assert curves is not None  # from_object saw to it
        return SpeedModel(curves, tuple(table.mean_na for table in tables), shape.top_k, shape.num_experts)

    def controller(self, shape: MoEShape, min_na: int) -> Controller:
        """A controller at its beginning."""
        return Controller(self.speed_model(shape, min_na), self.rule.min_gain, self.rule.hold_steps)


def _levels(value: object, field: str, profiles: Mapping[str, PhasedSchedule]) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= MAX_LEVELS:
        raise FieldError(field, value, f"a list of 2 to {MAX_LEVELS} profiles, gentlest first")
    for index, name in enumerate(value):
        if not isinstance(name, str) or name not in profiles:
            raise FieldError(f"{field}[{index}]", name, "the profiles that are no auto profile: " + ", ".join(profiles))
    if len(set(value)) < len(value):
        raise FieldError(field, value, "each profile once")
    return tuple(value)


def _prefill(value: object, field: str, profiles: Mapping[str, PhasedSchedule]) -> SkipSchedule:
    if isinstance(value, str):
        if value not in profiles:
            raise FieldError(field, value, "a rule, or one of " + ", ".join(profiles))
        return profiles[value].prefill
    return SkipSchedule.from_object(value, field)


def _machine(value: object, field: str) -> Machine:
    if not isinstance(value, dict):
        raise FieldError(field, value, "an object with the keys " + ", ".join(MACHINE_KEYS))
    check_keys(value, field, MACHINE_KEYS)
    for key in MACHINE_KEYS:
        if not is_number(rate := value.get(key)) or rate <= 0:
            raise FieldError(f"{field}.{key}", rate, "a number above 0")
    return Machine(read_bandwidth=value["read_gb_s"] * 1e9, peak_flops=value["peak_tflops"] * 1e12)


def _speedup(value: object, field: str, levels: Mapping[str, SkipSchedule], folder: Path) -> tuple[Curve, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return read_curves(folder / value, field, levels)
    if not isinstance(value, dict):
        raise FieldError(field, value, "{level: {tokens: factor}}, or the path of a load test's summary.json")
    check_keys(value, field, tuple(levels))
    for name in levels:
        if name not in value and name != FULL:
            raise FieldError(field, sorted(value), f"a curve for every level but {FULL}: {name} is missing")
    return tuple(_curve(value[name], f"{field}.{name}") if name in value else ((1, 1.0),) for name in levels)


def _curve(value: object, field: str) -> Curve:
    if not isinstance(value, dict) or not value:
        raise FieldError(field, value, "an object of tokens: factor, such as {1: 1.5, 64: 1.2}")
    for tokens, factor in value.items():
        if not is_int(tokens) or not 1 <= tokens <= MAX_TOKENS:
            raise FieldError(field, tokens, f"batch sizes from 1 to {MAX_TOKENS} as keys")
        if not is_number(factor) or not 0.01 <= factor <= 1000:
            raise FieldError(f"{field}.{tokens}", factor, "a number from 0.01 to 1000: how many times as fast as full")
    return tuple(sorted((tokens, float(factor)) for tokens, factor in value.items()))


def _check_predictable(machine: Machine | None, field: str, levels: Mapping[str, SkipSchedule]) -> None:
    if machine is None:
        raise FieldError(
            f"{field}.speedup",
            None,
            "curves, a load test's summary.json, or beside it machine: {read_gb_s, peak_tflops} to predict from",
        )
    for name, level in levels.items():
        if level.rule in WEIGHT_RULES or level.consolidate is not None:
            raise FieldError(f"{field}.speedup", None, f"curves: what {name} keeps depends on the tokens")
