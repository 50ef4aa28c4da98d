"""How many routed experts each layer keeps: one phase's rule (`SkipSchedule`), expanded on a model to a `LayerTable`.

Pure: numpy only. Source: arXiv 2505.03531 section 5.2, with rounding as fitted on its Table 10, plus magnitude rules.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal, Protocol

import numpy as np

from sglang_moe_opt.fields import FieldError, check_keys, is_int, is_number, join_field
from sglang_moe_opt.layer_table import FULL, MASS, LayerTable

__all__ = ["FULL", "MASS", "LayerTable", "Limits", "ModelShape", "PhasedSchedule", "SkipSchedule", "interpolate_bhep"]

MAX_NA: Final = 1024  # sanity bounds for values met before the model is known
MAX_LAYERS: Final = 1024
MIN_RESCALE: Final = 1e-6
MAX_RESCALE: Final = 10.0
RULES: Final = ("na", "schedule", "layers", "min_ratio", "top_p")
OPTIONS: Final = ("min_na", "rescale", "layer_base")

LayerBase = Literal["moe", "all"]
Rescale = Literal["router", "mass"] | float


class ModelShape(Hashable, Protocol):
    """What a schedule needs to know of a model; `model_shape.MoEShape` is one."""

    @property
    def num_layers(self) -> int: ...
    @property
    def moe_layer_ids(self) -> tuple[int, ...]: ...
    @property
    def top_k(self) -> int: ...
    @property
    def num_shared_experts(self) -> int: ...
    @property
    def renormalize(self) -> bool: ...


@dataclass(frozen=True)
class Limits:
    """What a model and a policy allow in a rule; the defaults are for rules met before the model is known.

    `min_na`: floor of every na. `top_k`: the model's own; higher values up to MAX_NA mean the model itself.
    `moe_layers`, `num_layers`: how many MoE layers, and layers of any kind; None where unknown.
    """

    min_na: int = 0
    top_k: int = MAX_NA
    moe_layers: int | None = None
    num_layers: int | None = None

    @classmethod
    def of(cls, shape: ModelShape, min_na: int = 0) -> Limits:
        """Limits on this model with a policy's floor; na 0 needs shared experts, and no floor exceeds the top-k."""
        floor = min(max(min_na, 0 if shape.num_shared_experts > 0 else 1), shape.top_k)
        return cls(floor, shape.top_k, len(shape.moe_layer_ids), shape.num_layers)

    def check_na(self, name: str, value: object) -> None:
        """Raise FieldError unless `value` is a number of routed experts."""
        if not is_int(value) or not self.min_na <= value <= MAX_NA:
            raise FieldError(name, value, f"an integer from {self.min_na} to {self.top_k}")


def interpolate_bhep(b: int, h: int, e: int, p: int, num_layers: int) -> list[int]:
    """Experts of layers 1..num_layers: b at the first, h at layer p, e at the last, linear between, rounded half up.

    The first layer is always b and the last always e (so b wins at p=1 and e at p=num_layers); arithmetic is exact.
    Source: arXiv 2505.03531 section 5.2; the rounding and p=1 are fitted on Table 10. ValueError if p is out of range.
    """
    if num_layers < 1 or not 1 <= p <= num_layers:
        raise ValueError(f"p: got {p}, allowed: an integer from 1 to {num_layers}")

    def at(layer: int) -> int:
        if layer == 1:
            return b
        if layer == num_layers:
            return e
        left, y0, right, y1 = (1, b, p, h) if layer <= p else (p, h, num_layers, e)
        span = right - left
        return (2 * (y0 * (right - layer) + y1 * (layer - left)) + span) // (2 * span)

    return [at(layer) for layer in range(1, num_layers + 1)]


@dataclass(frozen=True)
class SkipSchedule:
    """One phase's rule: at most one of `na`, `schedule`, `layers`, `min_ratio`, `top_p`; none is the full model.

    na: routed experts kept in every MoE layer.
    schedule: (b, h, e, p), see `interpolate_bhep`; clamped to the model's top-k after interpolation.
    layer_base: what p of `schedule` counts, from 1: the MoE layers ("moe", as the paper does for V2-Lite, p 1..26) or
        all layers, dense ones included ("all", as it does for V3, p 1..61; MoE layers then take their own value).
    layers: na of each MoE layer in order.
    min_ratio: keep an expert while its weight >= min_ratio x the token's largest; 0 is off.
    top_p: keep the smallest set whose share of the routed weight reaches top_p; 1 is off.
    min_na: experts that min_ratio and top_p always keep (1 if None); without effect on the other rules.
    rescale: kept weights in layers where something may be dropped: "router" = as the model does with that top-k,
        "mass" = keep the token's routed weight mass, or a factor.
    Raises FieldError.
    """

    na: int | None = None
    schedule: tuple[int, int, int, int] | None = None
    layers: tuple[int, ...] | None = None
    min_ratio: float | None = None
    top_p: float | None = None
    min_na: int | None = None
    rescale: Rescale = "router"
    layer_base: LayerBase = "moe"

    def __post_init__(self) -> None:
        self.check()
        for name in ("schedule", "layers"):  # one canonical type per field, so that equal rules are equal objects
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        for name in ("min_ratio", "top_p", "rescale"):
            if is_int(value := getattr(self, name)):
                object.__setattr__(self, name, float(value))

    @property
    def rule(self) -> str:
        """Name of the rule that is set, or "full"."""
        return next((name for name in RULES if getattr(self, name) is not None), FULL)

    def check(self, limits: Limits = Limits(), prefix: str = "") -> None:
        """Raise FieldError, its field under `prefix`, unless every value is allowed by `limits`."""
        _check_values(vars(self), limits, prefix)

    def with_floor(self, min_na: int) -> SkipSchedule:
        """The same rule, a magnitude rule keeping at least `min_na` experts."""
        if self.rule not in ("min_ratio", "top_p") or min_na <= max(self.min_na or 0, 1):
            return self
        return replace(self, min_na=min_na)

    def expand(self, shape: ModelShape) -> LayerTable:
        """The rule on a model, one entry per MoE layer. Raises FieldError where the model does not allow it."""
        return _expand(self, shape)

    @classmethod
    def from_object(cls, value: object, field: str, limits: Limits = Limits()) -> SkipSchedule:
        """Parse {"na": 2}, {"min_ratio": 0.2, "min_na": 2}, ... Raises FieldError and nothing else, whatever comes."""
        if not isinstance(value, dict):
            raise FieldError(field, value, "an object with exactly one of " + ", ".join(RULES))
        check_keys(value, field, (*RULES, *OPTIONS))
        rules = [name for name in RULES if name in value]
        if len(rules) != 1:
            raise FieldError(field, sorted(value), "exactly one of " + ", ".join(RULES))
        for name, item in value.items():
            if item is None:
                raise FieldError(join_field(field, name), item, "a value, or leave the key out")
        if "layer_base" in value and "schedule" not in value:
            raise FieldError(join_field(field, "layer_base"), value["layer_base"], "only together with schedule")
        _check_values({**vars(_FULL_MODEL), **value}, limits, field)
        return cls(**value)

    def to_object(self) -> dict[str, Any]:
        """The JSON-ready form that `from_object` parses back to an equal schedule; {} for the full model."""
        if self.rule == FULL:
            return {}
        changed = {name: value for name, value in vars(self).items() if value != getattr(_FULL_MODEL, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def _check_values(values: Mapping[str, Any], limits: Limits, prefix: str) -> None:
    """Raise FieldError, its field under `prefix`, unless the rule with these fields is allowed by `limits`."""
    given = [name for name in RULES if values[name] is not None]
    if len(given) > 1:
        raise FieldError(prefix or "schedule", given, "exactly one of " + ", ".join(RULES))
    try:
        _check_counts(values, limits)
        _check_magnitudes(values)
    except FieldError as error:
        raise FieldError(join_field(prefix, error.field), error.value, error.allowed) from None


def _check_counts(values: Mapping[str, Any], limits: Limits) -> None:
    for name in ("na", "min_na"):
        if values[name] is not None:
            limits.check_na(name, values[name])
    base, schedule, layers = values["layer_base"], values["schedule"], values["layers"]
    if base not in ("moe", "all"):
        raise FieldError("layer_base", base, "moe, all")
    if schedule is not None:
        _check_length("schedule", schedule, 4, "[b, h, e, p]")
        for index in range(3):
            limits.check_na(f"schedule[{index}]", schedule[index])
        last = (limits.moe_layers if base == "moe" else limits.num_layers) or MAX_LAYERS
        if not is_int(schedule[3]) or not 1 <= schedule[3] <= last:
            over = "MoE layers" if base == "moe" else "layers"
            raise FieldError("schedule[3]", schedule[3], f"an integer from 1 to {last} (p, over the {over})")
    if layers is not None:
        _check_length("layers", layers, limits.moe_layers, "one integer per MoE layer")
        for index, na in enumerate(layers):
            limits.check_na(f"layers[{index}]", na)


def _check_length(name: str, value: object, length: int | None, meaning: str) -> None:
    low, high = (length, length) if length is not None else (1, MAX_LAYERS)
    if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
        size = f"{low} integers" if low == high else f"{low} to {high} integers"
        raise FieldError(name, value, f"a list of {size} ({meaning})")


def _check_magnitudes(values: Mapping[str, Any]) -> None:
    ratio, top_p, rescale = values["min_ratio"], values["top_p"], values["rescale"]
    if ratio is not None and not (is_number(ratio) and 0 <= ratio <= 1):
        raise FieldError("min_ratio", ratio, "a number from 0 to 1")
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise FieldError("top_p", top_p, "a number above 0, up to 1")
    if isinstance(rescale, str) and rescale in ("router", "mass"):
        return
    # the table holds float32: a factor that underflows there would silence the layer
    if not (is_number(rescale) and MIN_RESCALE <= rescale <= MAX_RESCALE):
        raise FieldError("rescale", rescale, f"router, mass, or a number from {MIN_RESCALE:g} to {MAX_RESCALE:g}")


_FULL_MODEL: Final = SkipSchedule()


@lru_cache(maxsize=4096)
def _expand(rule: SkipSchedule, shape: ModelShape) -> LayerTable:
    rule.check(Limits.of(shape))
    count = len(shape.moe_layer_ids)
    na = [shape.top_k if rule.na is None else rule.na] * count
    if rule.layers is not None:
        na = list(rule.layers)
    elif rule.schedule is not None:
        b, h, e, p = rule.schedule
        if rule.layer_base == "moe":
            na = interpolate_bhep(b, h, e, p, count)
        else:
            every = interpolate_bhep(b, h, e, p, shape.num_layers)
            na = [every[layer] for layer in shape.moe_layer_ids]
    return LayerTable(
        na=np.array(na, np.int32),
        min_ratio=np.full(count, rule.min_ratio or 0.0, np.float32),
        top_p=np.full(count, 1.0 if rule.top_p is None else rule.top_p, np.float32),
        min_na=np.full(count, rule.min_na or 0, np.int32),
        rescale=np.full(count, _rescale_factor(rule.rescale, shape.renormalize), np.float32),
        top_k=shape.top_k,
    )


def _rescale_factor(rescale: Rescale, renormalize: bool) -> float:
    if isinstance(rescale, str):
        return MASS if rescale == "mass" or renormalize else 1.0
    return rescale


@dataclass(frozen=True)
class PhasedSchedule:
    """The rule of each phase: `prefill` for prompt tokens, `decode` for generated ones."""

    prefill: SkipSchedule
    decode: SkipSchedule

    @classmethod
    def uniform(cls, schedule: SkipSchedule) -> PhasedSchedule:
        return cls(schedule, schedule)

    def with_floor(self, min_na: int) -> PhasedSchedule:
        """Both phases' magnitude rules keep at least `min_na` experts."""
        return PhasedSchedule(self.prefill.with_floor(min_na), self.decode.with_floor(min_na))

    def to_object(self) -> dict[str, Any]:
        """{"prefill": ..., "decode": ...} in JSON-ready form, or one object where both are the same."""
        if self.prefill == self.decode:
            return self.prefill.to_object()
        return {"prefill": self.prefill.to_object(), "decode": self.decode.to_object()}
