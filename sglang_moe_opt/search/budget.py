"""`Budget`: what a schedule may spend, as weights by layer and na with a limit. Pure.

Every budget is a sum over layers, so that allocation is exact: experts for a mean na, bytes of expert weights for one
token, or seconds of a decode step for tok/s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.curve import Curve
from sglang_moe_opt.perfmodel.parameters import Parameters
from sglang_moe_opt.perfmodel.step import Setup, step_time
from sglang_moe_opt.perfmodel.work import Batch

Array = NDArray[np.float64]
Kind = Literal["mean_na", "bytes_per_token", "tok_s", "max_loss"]

_SUFFIXES: Final = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Budget:
    """A limit on the sum of `weights`.

    Attributes:
        kind: what the user named.
        wanted: the user's number.
        weights: float64 [levels], what a layer spends at each na; the same for every layer.
        limit: of the sum over layers.
    """

    kind: Kind
    wanted: float
    weights: Array
    limit: float

    def spent(self, layers: Sequence[int], lowest: int) -> float:
        return float(sum(self.weights[na - lowest] for na in layers))

    def total(self, layers: int, lowest: int) -> int:
        """The largest sum of na that a schedule can have whose layers differ by one at most: that of uniform ones.

        Raises FieldError where even the lowest spends more than the limit.
        """
        best = None
        for total in range(layers * lowest, layers * (lowest + len(self.weights) - 1) + 1):
            low, more = divmod(total, layers)
            spent = (layers - more) * self.weights[low - lowest]
            spent += more * self.weights[low + 1 - lowest] if more else 0.0
            if spent <= self.limit * (1 + 1e-9):
                best = total
        if best is None:
            raise FieldError(option(self.kind), self.wanted, f"what na {lowest} in every layer can keep to")
        return best


def option(kind: Kind) -> str:
    return "--" + kind.replace("_", "-")


def of_mean_na(mean: float, shape: MoEShape, lowest: int) -> Budget:
    """At most this many routed experts a layer on average. Raises FieldError."""
    if not lowest <= mean < shape.top_k:
        raise FieldError("--mean-na", mean, f"a number from {lowest}, below the model's top-k {shape.top_k}")
    return Budget("mean_na", mean, _levels(shape, lowest), float(np.floor(mean * shape.num_moe_layers + 1e-6)))


def of_bytes(count: float, shape: MoEShape, lowest: int) -> Budget:
    """At most so many bytes of routed experts' weights for one token alone. Raises FieldError."""
    least, most = (shape.num_moe_layers * na * shape.expert_bytes for na in (lowest, shape.top_k))
    if not least <= count < most:
        raise FieldError("--bytes-per-token", count, f"bytes from {least}, below the full model's {most}")
    return Budget("bytes_per_token", count, _levels(shape, lowest) * shape.expert_bytes, count)


def of_tok_s(rate: float, setup: Setup, parameters: Parameters, lowest: int, *, tokens: int, context: float) -> Budget:
    """At least so many generated tokens a second by the cost model of a decode step of `tokens` sequences.

    What a layer takes at each na is its share of a step in which all layers have it: layers add up exactly where one
    of reading and computing is the longer at every na, and about where they cross. Raises FieldError where the lowest
    schedule is slower, or the full model is as fast already.
    """
    shape = setup.model.shape
    layers = shape.num_moe_layers
    levels = range(lowest, shape.top_k + 1)
    seconds = np.array([step_seconds(setup, parameters, [na] * layers, tokens, context) for na in levels])
    slowest, fastest = tokens / seconds[-1], tokens / seconds[0]
    if not slowest < rate <= fastest:
        raise FieldError(
            "--tok-s", rate, f"above the full model's {slowest:.4g}, up to {fastest:.4g} at na {lowest} (predicted)"
        )
    return Budget("tok_s", rate, np.maximum(seconds - seconds[0], 0) / layers, tokens / rate - float(seconds[0]))


def step_seconds(
    setup: Setup, parameters: Parameters, na_by_layer: Sequence[int], tokens: int, context: float
) -> float:
    """Predicted time of a decode step; `na_by_layer` has one entry per MoE layer."""
    na = tuple(map(float, na_by_layer))
    curve = Curve("searched", na, na, (setup.model.shape.num_experts,) * len(na))
    return step_time(setup, curve, parameters, Batch(tokens, tokens, context, is_prefill=False)).total_s


def of_everything(shape: MoEShape, lowest: int) -> Budget:
    """No limit but the full model: for the cheapest schedule within a loss."""
    return Budget("max_loss", 0.0, _levels(shape, lowest), float(shape.num_moe_layers * shape.top_k))


def parse_bytes(text: str) -> float:
    """12.5M, 900K, 2G or plain bytes. Raises FieldError."""
    found = re.fullmatch(r"([0-9.]+)([KMG]?)B?", text.strip(), re.IGNORECASE)
    try:
        return float(found[1]) * _SUFFIXES[found[2].upper()]  # type: ignore[index]
    except (TypeError, ValueError):
        raise FieldError("--bytes-per-token", text, "a number of bytes, with K, M or G for powers of 1000") from None


def parse_percent(text: str) -> float:
    """0.5% or 0.5: percent of bits per byte. Raises FieldError."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise FieldError("--max-loss", text, "percent of bits per byte above 0, below 100, such as 0.5%")
    return value


def _levels(shape: MoEShape, lowest: int) -> Array:
    return np.arange(lowest, shape.top_k + 1, dtype=np.float64)
