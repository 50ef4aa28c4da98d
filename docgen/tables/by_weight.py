"""Skipping by router weight beside skipping by rank, over five calibration samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docgen.blocks import Table
from docgen.results import half, load, table

SAMPLES = 5
RULES = ("min_weight", "min_ratio", "top_p")


def by_weight() -> str:
    """The change of bits per byte from full, and from the same mean number of experts by rank, in percent."""
    rows = [row for model in ("mini-v3", "mini-v2") for row in _model(model)]
    heads = ["model", "mean na", "rule", "rank, `router`", "rank, fitted", "by weight, five samples"]
    return table([*heads, "minus rank, `router`", "minus rank, fitted"], rows)


def _model(model: str) -> list[list[str]]:
    folder = f"magnitude_{model.replace('-', '_')}"
    schedules = {row["label"]: row for row in load(f"{folder}/summary.json")["schedules"]}
    pairs = load(f"{folder}/paired.json")["pairs"]
    budgets = sorted((int(label[2:]) for label in schedules if label[2:].isdigit()), reverse=True)
    rows = []
    for na in budgets:
        samples = [f"weight{na}-s{number}" for number in range(SAMPLES)]
        changes = [schedules[label]["bits_per_byte"]["change"]["value"] for label in samples]
        ranks = [f"na{na}", f"na{na}-fit"]
        first = na == budgets[0]
        rows.append(
            [
                model if first else "",
                f"{na} of {schedules['full']['mean_na']:g}" if first else str(na),
                _rule(schedules[samples[0]]["hint"]),
                *(_change(schedules[label]["bits_per_byte"]["change"]) for label in ranks),
                f"{min(changes):+.2f} to {max(changes):+.2f}",
                *(_range([pairs[label][rank] for label in samples]) for rank in ranks),
            ]
        )
    return rows


def _rule(hint: Mapping[str, Any]) -> str:
    (rule,) = (name for name in RULES if name in hint)
    return f"`{rule}`" + (f", `min_na` {hint['min_na']}" if hint["min_na"] > 1 else "")


def _change(change: Mapping[str, Any]) -> str:
    return f"{change['value']:+.2f} ± {half(change['interval_95']):.2f}"


def _range(changes: Sequence[Mapping[str, Any]]) -> str:
    """Of all samples: the range, the smallest first, and the widest interval."""
    values = sorted((change["value"] for change in changes), key=abs)
    widest = max(half(change["interval_95"]) for change in changes)
    return f"{values[0]:+.2f} to {values[-1]:+.2f} ± {widest:.2f}"


TABLES: dict[str, Table] = {"by_weight": by_weight}
