"""How much each layer loses by having fewer experts, as measured: a JSON file that spreads a budget over layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import FieldError, check_keys, is_number
from sglang_moe_opt.files import read_json
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.ranking import Ranking


@dataclass(frozen=True)
class Sensitivity:
    """One entry per MoE layer, by layer id: {"layers": {"1": {"48": 0.002, "32": 0.011}, "2": ...}, "unit": "..."}.

    An entry is what the model loses, in any unit that all entries share, with this layer alone keeping so many
    experts; or one number, a weight on the share of the layer's contribution that removed experts hold.
    """

    layers: Mapping[int, float | Mapping[int, float]]
    unit: str = ""

    @classmethod
    def load(cls, path: str | Path, shape: MoEShape) -> Sensitivity:
        """Read a file for this model. Raises ValueError, one line that begins with the path."""
        try:
            return cls.from_object(read_json(Path(path), "sensitivity"), shape)
        except FieldError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_object(cls, value: object, shape: MoEShape) -> Sensitivity:
        """Validate the file's content. Raises FieldError."""
        if not isinstance(value, dict) or not isinstance(value.get("layers"), dict):
            raise FieldError("sensitivity", value, "an object with the key layers: an object of layer id: entry")
        check_keys(value, "sensitivity", ("layers", "unit", "provenance"))
        entries: dict[int, float | Mapping[int, float]] = {}
        for layer in shape.moe_layer_ids:
            field = f"layers.{layer}"
            if str(layer) not in value["layers"]:
                raise FieldError(field, "nothing", "an entry for every MoE layer")
            entries[layer] = _entry(value["layers"][str(layer)], field, shape.num_experts)
        check_keys(value["layers"], "layers", [str(layer) for layer in shape.moe_layer_ids])
        return cls(entries, str(value.get("unit", "")))

    def to_object(self) -> dict[str, Any]:
        """What `from_object` reads."""
        entries = {
            str(layer): {str(kept): loss for kept, loss in entry.items()} if isinstance(entry, Mapping) else entry
            for layer, entry in self.layers.items()
        }
        return {"layers": entries, "unit": self.unit}

    @property
    def needs_shares(self) -> bool:
        """Whether an entry is a weight on shares lost, which only statistics tell."""
        return not all(isinstance(entry, Mapping) for entry in self.layers.values())

    def loss(self, ranking: Ranking, shares_lost: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """What each layer loses at each of the ranking's counts: float64 [L, len(counts)].

        Between measured counts, and beyond them, the loss is linear in the square of the experts removed, from 0 at
        none: few removals cost less than their share. Raises ValueError where shares are needed and not given.
        """
        if self.needs_shares and shares_lost is None:
            raise ValueError("sensitivity: weights on shares lost need statistics; losses by kept count do not")
        removed = ranking.counts[-1] - np.array(ranking.counts)
        rows = []
        for index, entry in enumerate(self.layers.values()):
            if isinstance(entry, Mapping):
                rows.append(_interpolate(removed, {ranking.counts[-1] - kept: v for kept, v in entry.items()}))
            elif shares_lost is not None:
                rows.append(entry * shares_lost[index])
        return np.stack(rows)


def _entry(entry: Any, field: str, num_experts: int) -> float | dict[int, float]:
    if is_number(entry) and entry >= 0:
        return float(entry)
    if not isinstance(entry, dict) or not entry:
        raise FieldError(field, entry, "a weight >= 0, or an object of kept experts: loss")
    for kept, loss in entry.items():
        if not kept.isascii() or not kept.isdigit() or not 0 < int(kept[:9]) < num_experts:
            raise FieldError(field, kept, f"kept experts 1 to {num_experts - 1}")
        if not is_number(loss):
            raise FieldError(f"{field}.{kept}", loss, "a number")
    return {int(kept): float(loss) for kept, loss in entry.items()}


def _interpolate(removed: NDArray[np.int64], measured: Mapping[int, float]) -> NDArray[np.float64]:
    """Losses at `removed` counts from those `measured` at others; see `Sensitivity.loss`."""
    points = np.array([(0, 0.0), *sorted(measured.items())])
    squares, losses = points[:, 0] ** 2, points[:, 1]
    slope = (losses[-1] - losses[-2]) / (squares[-1] - squares[-2])
    beyond = np.maximum(removed.astype(np.float64) ** 2 - squares[-1], 0.0)
    return np.interp(removed.astype(np.float64) ** 2, squares, losses) + slope * beyond
