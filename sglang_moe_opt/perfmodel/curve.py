"""What is compared: routed experts per token and kept experts, layer by layer, of one way to serve a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.layer_table import LayerTable
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.pruning.statistics import ExpertStatistics

Layers = tuple[float, ...]


@dataclass(frozen=True)
class Consolidated:
    """Decode steps whose tokens share experts: each keeps its own k0, the other slots go where the batch is anyway.

    max_experts: a step touches others too, up to so many distinct ones; None: the tokens' own alone.
    max_batch: steps with more tokens run plainly; None: none do.
    """

    k0: int
    max_experts: int | None = None
    max_batch: int | None = None


@dataclass(frozen=True)
class Curve:
    """One way to serve. Every tuple has one entry for each MoE layer. Raises FieldError.

    Attributes:
        label: as tables call it.
        na_prefill, na_decode: routed experts per token; means may be broken numbers.
        kept: experts that are loaded.
        consolidated: how decode steps share experts; None where they do not.
        popularity: relative popularity of each layer's kept experts, where it was measured; else that of
            `Parameters.routing_skew`.
    """

    label: str
    na_prefill: Layers
    na_decode: Layers
    kept: tuple[int, ...]
    consolidated: Consolidated | None = None
    popularity: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.na_prefill) == len(self.na_decode) == len(self.kept):
            raise FieldError("curve", self.label, "one number of experts for every MoE layer")
        for name in ("na_prefill", "na_decode"):
            for na, kept in zip(getattr(self, name), self.kept, strict=True):
                if not 0 <= na <= kept:
                    raise FieldError(name, na, f"a number from 0 to {kept}, the experts of the layer")
        if self.popularity is not None and [len(layer) for layer in self.popularity] != list(self.kept):
            raise FieldError("popularity", self.label, "one number for every kept expert")

    @property
    def mean_na(self) -> float:
        """Of decoding."""
        return float(np.mean(self.na_decode))

    @property
    def mean_kept(self) -> float:
        return float(np.mean(self.kept))


def make_curve(
    shape: MoEShape,
    label: str,
    *,
    na: float | None = None,
    tables: tuple[LayerTable, LayerTable] | None = None,
    experts: int | None = None,
    plan: PrunePlan | None = None,
    consolidated: Consolidated | None = None,
    statistics: ExpertStatistics | None = None,
) -> Curve:
    """A curve on a model; what is not given is the model's own.

    Args:
        na: in every MoE layer and phase.
        tables: of prefill and decode, instead of `na`.
        experts: kept in every layer. plan: the experts kept, instead.
        statistics: of `moe-opt calibrate`: the popularity of experts is how often each was chosen.

    Raises:
        FieldError: a value that the model does not allow.
    """
    count = shape.num_moe_layers
    if na is not None and not 0 <= na <= shape.top_k:
        shown = int(na) if float(na).is_integer() else na
        raise FieldError("na", shown, f"a number from 0 to {shape.top_k}, the model's top-k")
    prefill = decode = (float(shape.top_k if na is None else na),) * count
    if tables is not None:
        for table in tables:
            if not table.is_static:
                raise FieldError(
                    "schedule", label, "rules that keep a known number: give the mean kept by --na instead"
                )
        prefill, decode = (tuple(map(float, table.na.tolist())) for table in tables)
    if experts is not None and not shape.top_k <= experts <= shape.num_experts:
        raise FieldError("experts", experts, f"an integer from {shape.top_k} to {shape.num_experts}")
    if consolidated is not None and not 1 <= consolidated.k0 <= shape.top_k:
        raise FieldError("--consolidate", consolidated.k0, f"an integer from 1 to {shape.top_k}")
    kept = (shape.num_experts if experts is None else experts,) * count
    if plan is not None:
        plan.check(shape, None)
        kept = tuple(len(plan.kept(layer)) for layer in shape.moe_layer_ids)
    popularity = None if statistics is None else _popularity(shape, statistics, plan, kept)
    return Curve(label, prefill, decode, kept, consolidated, popularity)


def _popularity(
    shape: MoEShape, statistics: ExpertStatistics, plan: PrunePlan | None, kept: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    """Counts of each layer's kept experts: the plan's, or else the most chosen. Half a choice is added to each, so
    that no expert is thought never to be chosen."""
    if statistics.layer_ids != shape.moe_layer_ids or statistics.num_experts != shape.num_experts:
        have = f"{len(statistics.layer_ids)} layers of {statistics.num_experts} experts"
        raise FieldError(
            "--statistics", have, f"{shape.num_moe_layers} layers of {shape.num_experts}, as the model has"
        )
    rows: list[NDArray[np.float64]] = []
    for row, layer, count in zip(statistics.hard + 0.5, shape.moe_layer_ids, kept, strict=True):
        rows.append(row[list(plan.kept(layer))] if plan else np.sort(row)[::-1][:count])
    return tuple(tuple((row / row.mean()).tolist()) for row in rows)
