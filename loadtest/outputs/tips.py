"""What a point says of itself when a reader hovers over it."""

from __future__ import annotations

from loadtest.analysis import Cell, Imported
from loadtest.load import Load
from loadtest.metrics import BY_TAG
from loadtest.outputs.words import at, ends, interval_kind, number, with_unit

LINES = (
    ("total_tok_s", "output_tok_s"),
    ("ttft_p50_ms", "ttft_p99_ms"),
    ("tpot_p50_ms", "tpot_p99_ms"),
    ("itl_p50_ms", "itl_p99_ms"),
    ("goodput_s", "good_share"),
    ("distinct_experts", "mb_per_token"),
    ("bandwidth_share", "compute_share"),
)
"""Metrics that share a line."""


def of_cell(cell: Cell) -> str:
    """Lines of the hover text."""
    lines = [cell.arm, at(cell.load).removeprefix("at ")]
    if ratio := cell.speedup.get("total_tok_s"):
        lines.append(
            f"{ratio.median:.2f} times as fast ({ends(ratio)}{', 95 %' if interval_kind(ratio) == '95 %' else ''})"
        )
    lines += _numbers({tag: spread.median for tag, spread in cell.values.items()})
    return "\n".join([*lines, *cell.caveats])


def of_imported(point: Imported) -> str:
    load = Load("closed", point.concurrency)
    return "\n".join([point.source, at(load).removeprefix("at "), *_numbers(point.values)])


def _numbers(values: dict[str, float]) -> list[str]:
    lines = []
    for tags in LINES:
        if known := [tag for tag in tags if tag in values]:
            lines.append(", ".join(f"{BY_TAG[tag].header} {_number(tag, values[tag])}" for tag in known))
    return lines


def _number(tag: str, value: float) -> str:
    """Without its unit where the name has it already."""
    return number(tag, value) if BY_TAG[tag].unit in BY_TAG[tag].header else with_unit(tag, value)
