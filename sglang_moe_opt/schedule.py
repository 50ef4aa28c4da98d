"""How many routed experts each layer keeps: one phase's rule (`SkipSchedule`), expanded on a model to a `LayerTable`.

Pure: numpy only. Source: arXiv 2505.03531 section 5.2, with rounding as fitted on its Table 10, plus magnitude rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError, check_keys, is_int, join_field
from sglang_moe_opt.layer_table import FULL, MASS, LayerTable
from sglang_moe_opt.schedule_limits import (
    ANY_MODEL,
    MAGNITUDES,
    MAX_NA,
    OPTIONS,
    RULES,
    WEIGHT_RULES,
    LayerBase,
    Limits,
    ModelShape,
    Rescale,
    check_values,
)

__all__ = [
    "FULL",
    "MASS",
    "MAX_NA",
    "OPTIONS",
    "RULES",
    "WEIGHT_RULES",
    "LayerTable",
    "Limits",
    "ModelShape",
    "PhasedSchedule",
    "SkipSchedule",
    "interpolate_bhep",
]


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


def _real(value: Any) -> Any:
    return float(value) if is_int(value) else value


@dataclass(frozen=True)
class SkipSchedule:
    """One phase's rule: at most one of `na`, `schedule`, `layers`, `min_ratio`, `min_weight`, `top_p`.

    Without any it is the full model.

    na: routed experts kept in every MoE layer.
    schedule: (b, h, e, p), see `interpolate_bhep`; clamped to the model's top-k after interpolation.
    layer_base: what p of `schedule` counts, from 1: the MoE layers ("moe", as the paper does for V2-Lite, p 1..26) or
        all layers, dense ones included ("all", as it does for V3, p 1..61; MoE layers then take their own value).
    layers: na of each MoE layer in order.
    min_ratio: keep an expert while its weight >= min_ratio x the token's largest; 0 is off.
    min_weight: keep an expert while its weight, before routed_scaling_factor, >= min_weight; 0 is off.
    top_p: keep the smallest set whose share of the routed weight reaches top_p; 1 is off.
    min_na: experts that the three rules by weight always keep (1 if None); without effect on the other rules.
    rescale: kept weights in layers where something may be dropped: "router" = as the model does with that top-k,
        "mass" = keep the token's routed weight mass, or a factor.
    consolidate: k0; in decode steps a token keeps its own first k0 experts, and its other slots go to experts that the
        batch computes anyway. True stands for the policy's k0, see `with_k0`. Not for rules by weight.
    min_ratio, min_weight, top_p and rescale are one value, or a tuple with one for each MoE layer in order.
    Raises FieldError.
    """

    na: int | None = None
    schedule: tuple[int, int, int, int] | None = None
    layers: tuple[int, ...] | None = None
    min_ratio: float | tuple[float, ...] | None = None
    min_weight: float | tuple[float, ...] | None = None
    top_p: float | tuple[float, ...] | None = None
    min_na: int | None = None
    rescale: Rescale | tuple[Rescale, ...] = "router"
    layer_base: LayerBase = "moe"
    consolidate: int | None = None

    def __post_init__(self) -> None:
        self.check()
        for name in ("schedule", "layers"):  # one canonical type per field, so that equal rules are equal objects
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        for name in MAGNITUDES:
            value = getattr(self, name)
            items = tuple(map(_real, value)) if isinstance(value, (list, tuple)) else _real(value)
            object.__setattr__(self, name, items)

    @property
    def rule(self) -> str:
        """Name of the rule that is set, or "full"."""
        return next((name for name in RULES if getattr(self, name) is not None), FULL)

    def check(self, limits: Limits = ANY_MODEL, prefix: str = "") -> None:
        """Raise FieldError, its field under `prefix`, unless every value is allowed by `limits`."""
        check_values(vars(self), limits, prefix)

    def with_floor(self, min_na: int) -> SkipSchedule:
        """The same rule, a magnitude rule keeping at least `min_na` experts."""
        if self.rule not in WEIGHT_RULES or min_na <= max(self.min_na or 0, 1):
            return self
        return replace(self, min_na=min_na)

    def with_k0(self, k0: int) -> SkipSchedule:
        """The same rule, a `consolidate` of true replaced by `k0`."""
        return replace(self, consolidate=k0) if self.consolidate is True else self

    def plain(self) -> SkipSchedule:
        """The same rule without consolidation."""
        return self if self.consolidate is None else replace(self, consolidate=None)

    def expand(self, shape: ModelShape) -> LayerTable:
        """The rule on a model, one entry per MoE layer. Raises FieldError where the model does not allow it."""
        if self.consolidate is True:
            raise FieldError("consolidate", True, "an integer; true needs a policy that says how many")
        return _expand(self, shape)

    @classmethod
    def from_object(cls, value: object, field: str, limits: Limits = ANY_MODEL) -> SkipSchedule:
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
        check_values({**vars(_FULL_MODEL), **value}, limits, field)
        return cls(**value)

    def to_object(self) -> dict[str, Any]:
        """The JSON-ready form that `from_object` parses back to an equal schedule; {} for the full model."""
        if self.rule == FULL:
            return {}
        changed = {name: value for name, value in vars(self).items() if value != getattr(_FULL_MODEL, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


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
        min_ratio=_column(rule.min_ratio or 0.0, count) - _column(rule.min_weight or 0.0, count),
        top_p=_column(1.0 if rule.top_p is None else rule.top_p, count),
        min_na=np.full(count, rule.min_na or 0, np.int32),
        rescale=_column(_rescale_factors(rule.rescale, shape.renormalize), count),
        k0=np.full(count, rule.consolidate or 0, np.int32),
        top_k=shape.top_k,
    )


def _column(value: float | Sequence[float], count: int) -> NDArray[np.float32]:
    """One value for every layer, or the layers' own."""
    return np.broadcast_to(np.asarray(value, np.float32), (count,))


def _rescale_factors(rescale: Rescale | tuple[Rescale, ...], renormalize: bool) -> float | list[float]:
    if isinstance(rescale, tuple):
        return [_rescale_factor(one, renormalize) for one in rescale]
    return _rescale_factor(rescale, renormalize)


def _rescale_factor(rescale: Rescale, renormalize: bool) -> float:
    if isinstance(rescale, str):
        return MASS if rescale == "mass" or renormalize else 1.0
    return rescale


@dataclass(frozen=True)
class PhasedSchedule:
    """The rule of each phase: `prefill` for prompt tokens, `decode` for generated ones.

    Prompts never consolidate: a rule that does runs plainly there, so that its prompts share the plain rule's cache.
    """

    prefill: SkipSchedule
    decode: SkipSchedule

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefill", self.prefill.plain())

    @classmethod
    def uniform(cls, schedule: SkipSchedule) -> PhasedSchedule:
        return cls(schedule, schedule)

    def with_floor(self, min_na: int) -> PhasedSchedule:
        """Both phases' magnitude rules keep at least `min_na` experts."""
        return PhasedSchedule(self.prefill.with_floor(min_na), self.decode.with_floor(min_na))

    def with_k0(self, k0: int) -> PhasedSchedule:
        """A `consolidate` of true replaced by `k0`."""
        return replace(self, decode=self.decode.with_k0(k0))

    def to_object(self) -> dict[str, Any]:
        """{"prefill": ..., "decode": ...} in JSON-ready form, or one object where both are the same."""
        if self.prefill == self.decode:
            return self.prefill.to_object()
        return {"prefill": self.prefill.to_object(), "decode": self.decode.to_object()}
