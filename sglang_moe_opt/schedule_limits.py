"""What the values of a rule may be, on any model and on a given one. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from sglang_moe_opt.fields import FieldError, is_int, is_number, join_field

MAX_NA: Final = 1024  # sanity bounds for values met before the model is known
MAX_LAYERS: Final = 1024
MIN_RESCALE: Final = 1e-6
MAX_RESCALE: Final = 10.0
RULES: Final = ("na", "schedule", "layers", "min_ratio", "min_weight", "top_p")
OPTIONS: Final = ("min_na", "rescale", "layer_base", "consolidate")

LayerBase = Literal["moe", "all"]
Rescale = Literal["router", "mass"] | float
"""What is done to the weights of a token's kept experts."""
WEIGHT_RULES: Final = ("min_ratio", "min_weight", "top_p")
"""Rules that depend on a token's router weights."""
MAGNITUDES: Final = (*WEIGHT_RULES, "rescale")
"""Fields that are one value, or a list with one for each MoE layer."""


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

    def check_k0(self, value: object) -> None:
        """Raise FieldError unless `value` is a number of own experts that a consolidating token keeps, or true."""
        floor = max(self.min_na, 1)
        if value is not True and not (is_int(value) and floor <= value <= MAX_NA):
            raise FieldError("consolidate", value, f"an integer from {floor} to {self.top_k}, or true")


ANY_MODEL: Final = Limits()
"""For rules met before the model is known."""


def check_values(values: Mapping[str, Any], limits: Limits, prefix: str) -> None:
    """Raise FieldError, its field under `prefix`, unless the rule with these fields is allowed by `limits`."""
    given = [name for name in RULES if values[name] is not None]
    if len(given) > 1:
        raise FieldError(prefix or "schedule", given, "exactly one of " + ", ".join(RULES))
    try:
        _check_counts(values, limits)
        _check_magnitudes(values, limits)
        _check_consolidate(values, limits)
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


def _check_length(name: str, value: object, length: int | None, meaning: str, unit: str = "integers") -> None:
    low, high = (length, length) if length is not None else (1, MAX_LAYERS)
    if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
        size = f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
        raise FieldError(name, value, f"a list of {size} ({meaning})")


def _check_magnitudes(values: Mapping[str, Any], limits: Limits) -> None:
    for name in MAGNITUDES:
        value = values[name]
        if isinstance(value, (list, tuple)):
            _check_length(name, value, limits.moe_layers, "one per MoE layer", "values")
            for index, item in enumerate(value):
                _check_magnitude(name, item, f"{name}[{index}]")
        elif value is not None or name not in RULES:
            _check_magnitude(name, value, name)


_MAGNITUDES_ALLOWED: Final = {
    "min_ratio": "a number from 0 to 1",
    "min_weight": "a number from 0 to 1",
    "top_p": "a number above 0, up to 1",
    "rescale": f"router, mass, or a number from {MIN_RESCALE:g} to {MAX_RESCALE:g}",
}


def _check_magnitude(name: str, value: object, field: str) -> None:
    if name == "rescale":
        # the table holds float32: a factor that underflows there would silence the layer
        fits = value in ("router", "mass") if isinstance(value, str) else _between(value, MIN_RESCALE, MAX_RESCALE)
    else:
        fits = _between(value, 0, 1) and not (name == "top_p" and value == 0)
    if not fits:
        raise FieldError(field, value, _MAGNITUDES_ALLOWED[name])


def _between(value: object, low: float, high: float) -> bool:
    return is_number(value) and low <= value <= high


def _check_consolidate(values: Mapping[str, Any], limits: Limits) -> None:
    if values["consolidate"] is None:
        return
    limits.check_k0(values["consolidate"])
    if not any(values[name] is not None for name in ("na", "schedule", "layers")):
        raise FieldError("consolidate", values["consolidate"], "only together with na, schedule or layers")
