"""The few parameters that say how much of its ceilings an engine reaches, with priors, values and covariance.

A parameter is fitted on a scale without bounds: the logit of a share, the logarithm of anything else. Priors are normal
there. They hold where measurements say little, and are what is known of engines of this kind before any fit:
shares of data-sheet ceilings that fused MoE and attention kernels report, launch times of captured kernels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError, check_keys, is_int, is_number
from sglang_moe_opt.files import read_json, write_atomically
from sglang_moe_opt.perfmodel.hardware import Kind

Array = NDArray[np.float64]
Scale = Literal["share", "positive"]
VERSION: Final = 1
_NUMBERS: Final = re.compile(r"\[\n\s+([-+.\de]+(?:,\n\s+[-+.\de]+)*)\n\s+\]")


@dataclass(frozen=True)
class Parameters:
    """How an engine uses a device.

    Attributes:
        bandwidth_efficiency: share of the memory bandwidth at which weights and activations stream.
        attention_efficiency: the same of the cache in attention.
        flops_efficiency: share of the peak that products reach.
        overlap: share of the shorter of reading and computing that a kernel hides behind the longer; 1 is a roofline.
        network_efficiency: share of a link's bandwidth that collectives reach.
        kernel_overhead_s: least time of a kernel, however little it does, for each kernel of the step.
        step_overhead_s: the same for the step itself: scheduling, preparing its inputs.
        sequence_overhead_s: the same for each sequence of a step: sampling, streaming, bookkeeping.
        eager_kernel_overhead_s: more for each kernel where the step is no captured graph: prefill, and large batches.
        routing_skew: standard deviation of the logarithm of experts' popularity, where it was not measured.
        graph_max_batch: largest batch with a captured graph; None where nothing is captured and eager steps cost no
            more. A setting of the engine, never fitted.
    """

    bandwidth_efficiency: float
    attention_efficiency: float
    flops_efficiency: float
    overlap: float
    network_efficiency: float
    kernel_overhead_s: float
    step_overhead_s: float
    sequence_overhead_s: float
    eager_kernel_overhead_s: float
    routing_skew: float
    graph_max_batch: int | None = None

    def __post_init__(self) -> None:
        for name, scale in SCALES.items():
            value = getattr(self, name)
            top = 1.0 if scale == "share" else math.inf
            if not is_number(value) or not 0 <= value <= top:
                raise FieldError(f"parameters.{name}", value, "0 to 1" if scale == "share" else "a number from 0")
        for name in ("bandwidth_efficiency", "attention_efficiency", "flops_efficiency", "network_efficiency"):
            if getattr(self, name) == 0:
                raise FieldError(f"parameters.{name}", 0, "a share above 0")
        limit = self.graph_max_batch
        if limit is not None and not (is_int(limit) and limit >= 0):
            raise FieldError("parameters.graph_max_batch", limit, "an integer from 0, or null")


SCALES: Final[dict[str, Scale]] = {
    "bandwidth_efficiency": "share",
    "attention_efficiency": "share",
    "flops_efficiency": "share",
    "overlap": "share",
    "network_efficiency": "share",
    "kernel_overhead_s": "positive",
    "step_overhead_s": "positive",
    "sequence_overhead_s": "positive",
    "eager_kernel_overhead_s": "positive",
    "routing_skew": "positive",
}

Prior = tuple[float, float]
"""Median, and standard deviation on the scale without bounds; 0 holds the parameter."""

PRIORS: Final[dict[Kind, dict[str, Prior]]] = {
    "gpu": {
        "bandwidth_efficiency": (0.5, 0.5),
        "attention_efficiency": (0.4, 0.5),
        "flops_efficiency": (0.35, 0.5),
        "overlap": (0.3, 1.0),
        "network_efficiency": (0.7, 0.3),
        "kernel_overhead_s": (5e-6, 0.5),
        "step_overhead_s": (1e-3, 0.5),
        "sequence_overhead_s": (15e-6, 0.5),
        "eager_kernel_overhead_s": (8e-6, 0.5),
        "routing_skew": (0.5, 0.5),
    },
    "cpu": {
        "bandwidth_efficiency": (0.85, 0.5),
        "attention_efficiency": (0.5, 0.5),
        "flops_efficiency": (0.65, 0.5),
        "overlap": (0.3, 1.0),
        "network_efficiency": (0.7, 0.0),
        "kernel_overhead_s": (2e-6, 0.5),
        "step_overhead_s": (1.5e-3, 0.5),
        "sequence_overhead_s": (50e-6, 0.7),
        "eager_kernel_overhead_s": (0.0, 0.0),
        "routing_skew": (0.5, 0.5),
    },
}


def prior_parameters(kind: Kind, graph_max_batch: int | None = None) -> Parameters:
    """The priors' medians."""
    medians = {name: median for name, (median, _) in PRIORS[kind].items()}
    return Parameters(**medians, graph_max_batch=graph_max_batch)


def to_free(name: str, value: float) -> float:
    """A parameter on its scale without bounds; values at a bound are moved inside by a millionth."""
    if SCALES[name] == "share":
        inside = min(max(value, 1e-6), 1 - 1e-6)
        return math.log(inside / (1 - inside))
    return math.log(max(value, 1e-12))


def from_free(name: str, value: float) -> float:
    """The reverse of `to_free`."""
    return 1 / (1 + math.exp(-value)) if SCALES[name] == "share" else math.exp(value)


def with_free(parameters: Parameters, free: Mapping[str, float]) -> Parameters:
    """The parameters with some of them at other values of their scales without bounds."""
    changed: dict[str, Any] = {name: from_free(name, value) for name, value in free.items()}
    return replace(parameters, **changed)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Parameters with what is known of their error.

    Attributes:
        kind: of hardware that they are for.
        names: parameters that were fitted; the others were held.
        covariance: float64 [len(names)] x 2, of the names on their scales without bounds.
        provenance: what they were fitted to, JSON-ready.
    """

    values: Parameters
    kind: Kind
    names: tuple[str, ...] = ()
    covariance: Array = field(default_factory=lambda: np.zeros((0, 0)))
    provenance: dict[str, Any] = field(default_factory=dict)

    def at(self, free: Mapping[str, float]) -> Parameters:
        """The parameters with some of them at other values of their scales without bounds."""
        return with_free(self.values, free)

    def without(self, *names: str) -> Fitted:
        """The same with these parameters known for certain."""
        rest = [index for index, name in enumerate(self.names) if name not in names]
        return replace(
            self, names=tuple(self.names[index] for index in rest), covariance=self.covariance[np.ix_(rest, rest)]
        )

    def interval(self, name: str) -> tuple[float, float]:
        """A 95 % interval of a parameter; its value twice where it was held."""
        value = getattr(self.values, name)
        if name not in self.names:
            return value, value
        index = self.names.index(name)
        half = 1.96 * math.sqrt(self.covariance[index, index])
        center = to_free(name, value)
        return from_free(name, center - half), from_free(name, center + half)

    def to_object(self) -> dict[str, Any]:
        """The JSON-ready form that `from_object` reads."""
        values = {item.name: getattr(self.values, item.name) for item in fields(Parameters)}
        return {
            "version": VERSION,
            "kind": self.kind,
            "parameters": {name: _rounded(value) for name, value in values.items()},
            "intervals_95": {name: [_rounded(end) for end in self.interval(name)] for name in self.names},
            "fitted": list(self.names),
            "covariance": [[_rounded(value) for value in row] for row in self.covariance.tolist()],
            "provenance": self.provenance,
        }

    @classmethod
    def from_object(cls, content: object, file: str) -> Fitted:
        """Raises FieldError."""
        keys = ("version", "kind", "parameters", "intervals_95", "fitted", "covariance", "provenance")
        if not isinstance(content, dict):
            raise FieldError(file, content, "an object with the keys " + ", ".join(keys))
        check_keys(content, file, keys)
        if content.get("version") != VERSION:
            raise FieldError(f"{file}: version", content.get("version"), str(VERSION))
        if content.get("kind") not in PRIORS:
            raise FieldError(f"{file}: kind", content.get("kind"), ", ".join(PRIORS))
        values, names = content.get("parameters"), content.get("fitted", [])
        if not isinstance(values, dict):
            raise FieldError(f"{file}: parameters", values, "an object with the keys " + ", ".join(SCALES))
        check_keys(values, f"{file}: parameters", (*SCALES, "graph_max_batch"))
        if missing := [name for name in SCALES if name not in values]:
            raise FieldError(f"{file}: parameters.{missing[0]}", None, "a value: it is required")
        if not isinstance(names, list) or any(name not in SCALES for name in names):
            raise FieldError(f"{file}: fitted", names, "a list of " + ", ".join(SCALES))
        try:
            covariance = np.array(content.get("covariance", []), np.float64).reshape(len(names), len(names))
        except (TypeError, ValueError):
            raise FieldError(f"{file}: covariance", content.get("covariance"), "a square matrix of fitted") from None
        return cls(Parameters(**values), content["kind"], tuple(names), covariance, content.get("provenance", {}))

    def save(self, path: Path) -> None:
        """Write them as JSON, whole or not at all. Raises OSError."""
        text = json.dumps(self.to_object(), indent=2)
        write_atomically(path, _NUMBERS.sub(lambda row: f"[{' '.join(row[1].split())}]", text) + "\n")

    @classmethod
    def load(cls, path: Path, field_name: str = "--parameters") -> Fitted:
        """Raises FieldError."""
        if not path.is_file():
            raise FieldError(field_name, str(path), "a file that --fit wrote")
        return cls.from_object(read_json(path, field_name), str(path))

    @classmethod
    def default(cls, kind: Kind) -> Fitted:
        """What comes with the package: fitted to the paper's Table 8 (gpu), and to our own load test (cpu)."""
        return cls.load(Path(__file__).with_name("fitted") / f"{kind}.json")


def _rounded(value: float | int | None) -> float | int | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
