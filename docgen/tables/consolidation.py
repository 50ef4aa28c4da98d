"""Batch-aware consolidation: quality at a number of distinct experts, beside plain skipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docgen.blocks import Table
from docgen.results import load, table

SIZES = ("16", "32")


def quality(model: str) -> str:
    """Every schedule at both batch sizes: distinct experts, bits per byte, against plain skipping, cloze."""
    found = load(f"consolidation_{model}.json")
    by_size = [{row["arm"]: row for row in found["by_batch"][size]} for size in SIZES]
    whole = f"na={found['top_k']}"
    heads = ["schedule"]
    for size in SIZES:
        heads += [f"distinct, {size}", "bits/byte", "against plain"]
    rows = []
    for arm in by_size[0]:
        cells = ["full" if arm == whole else arm]
        for rows_of_size in by_size:
            cells += _measured(rows_of_size[arm])
        rows.append([*cells, _cloze([rows_of_size[arm] for rows_of_size in by_size])])
    return table([*heads, "cloze"], rows)


def _measured(row: Mapping[str, Any]) -> list[str]:
    change, plain = row["change_percent"], row.get("against_plain")
    loss = f"{row['bits_per_byte']:.4f}" if change is None else f"{change['value']:+.2f} %"
    return [f"{row['distinct_experts']:.1f}", loss, _interval(plain["change_percent"]) if plain else ""]


def _interval(change: Mapping[str, Any]) -> str:
    low, high = change["interval"]
    return f"{change['value']:+.2f} % ({low:+.2f} to {high:+.2f})"


def _cloze(rows: list[Mapping[str, Any]]) -> str:
    return " / ".join(dict.fromkeys(f"{row['cloze_percent']:.1f}" for row in rows if "cloze_percent" in row))


TABLES: dict[str, Table] = {"consolidation": quality}
