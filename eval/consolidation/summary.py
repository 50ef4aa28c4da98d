"""From each arm's nats and counts to what it costs at a number of distinct experts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.statistics import LN2, Difference, paired_change, paired_points

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One arm at one batch size.

    Attributes:
        distinct: distinct experts of a layer-step, by MoE layer.
        nats: float64 [batches], of the scored text; texts of one batch are not independent.
        n_bytes: [batches].
        right: float64 [items], cloze items answered rightly; None where it did not run.
    """

    name: str
    distinct: Array
    nats: Array
    n_bytes: Array
    right: Array | None = None

    @property
    def mean_distinct(self) -> float:
        return float(self.distinct.mean())


def summarise(plain: list[Measured], joint: list[Measured]) -> list[dict[str, Any]]:
    """One row per arm; the first plain arm is the full model, and plain arms come with falling na."""
    full = plain[0]
    rows = []
    for arm in (*plain, *joint):
        row = {
            "arm": arm.name,
            "distinct_experts": round(arm.mean_distinct, 2),
            "distinct_by_layer": [round(float(value), 2) for value in arm.distinct],
            "bits_per_byte": round(float(arm.nats.sum() / arm.n_bytes.sum()) / LN2, 5),
            "change_percent": None if arm is full else _shown(paired_change(arm.nats, full.nats)),
        }
        if arm.right is not None:
            row["cloze_percent"] = round(100 * float(arm.right.mean()), 2)
            if arm is not full and full.right is not None:
                row["cloze_points"] = _shown(paired_points([arm.right], [full.right]))
        if arm in joint:
            row["against_plain"] = against_plain(arm, plain)
        rows.append(row)
    return rows


def against_plain(arm: Measured, plain: list[Measured]) -> dict[str, Any] | None:
    """The change of bits per byte from plain skipping at the same number of distinct experts.

    That number lies between two plain arms: each batch's nats are interpolated linearly between theirs. None where it
    lies outside of all of them.
    """
    for more, fewer in pairwise(plain):
        if fewer.mean_distinct <= arm.mean_distinct <= more.mean_distinct:
            share = (arm.mean_distinct - fewer.mean_distinct) / (more.mean_distinct - fewer.mean_distinct)
            reference = share * more.nats + (1 - share) * fewer.nats
            result = {
                "between": [fewer.name, more.name],
                "bits_per_byte": round(float(reference.sum() / arm.n_bytes.sum()) / LN2, 5),
                "change_percent": _shown(paired_change(arm.nats, reference)),
            }
            if arm.right is not None and fewer.right is not None and more.right is not None:
                cloze = share * more.right + (1 - share) * fewer.right
                result["cloze_points"] = _shown(paired_points([arm.right], [cloze]))
            return result
    return None


def _shown(difference: Difference) -> dict[str, Any]:
    return {
        "value": round(difference.value, 3),
        "interval": [round(difference.interval.low, 3), round(difference.interval.high, 3)],
        "bootstrap": [round(difference.bootstrap.low, 3), round(difference.bootstrap.high, 3)],
        "units": difference.items,
    }


def to_record(arm: Measured) -> dict[str, Any]:
    """JSON-ready; `from_record` reads it."""
    lists = {name: value.tolist() for name, value in asdict(arm).items() if isinstance(value, np.ndarray)}
    return {"name": arm.name, **lists}


def from_record(record: Mapping[str, Any]) -> Measured:
    arrays = {name: np.asarray(value, np.float64) for name, value in record.items() if name != "name"}
    return Measured(name=record["name"], **arrays)
