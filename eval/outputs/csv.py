"""summary.csv: one line per schedule and measure, for spreadsheets."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

from eval.comparison import Comparison, Measured, Row
from eval.outputs.kept import experts, method_name
from sglang_moe_opt.files import write_atomically

FILE = "summary.csv"
COLUMNS = (
    "schedule",
    "shape",
    "mean_na",
    "measure",
    "value",
    "low_95",
    "high_95",
    "change",
    "change_low_95",
    "change_high_95",
    "change_unit",
    "p",
    "p_holm",
    "smallest_detectable",
    "margin_over_chance",
    "on_pareto_front",
    "runs",
    "verdict",
)
PLAN_COLUMNS = ("plan", "method", "experts_kept", "experts", "expert_megabytes")
"""Further columns where a schedule ran under a prune plan."""


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Measures are `average`, `bits_per_byte` and the tasks; values in percent or bits per byte."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(PLAN_COLUMNS if comparison.has_plans else ())])
    for row in comparison.rows:
        headline = {"average": row.average, "bits_per_byte": row.bits_per_byte}
        for name, measured in (headline | row.tasks | headline).items():  # a task may be called bits_per_byte
            if measured is not None:
                writer.writerow([*_line(row, name, measured), *_plan(comparison, row)])
    write_atomically(folder / FILE, text.getvalue())
    return [folder / FILE]


def _plan(comparison: Comparison, row: Row) -> list[object]:
    found = experts(comparison, row)
    if found is None:
        return []
    name, method = (row.plan.name, method_name(row.plan)) if row.plan else ("", "")
    return [name, method, round(found.kept, 5), found.of, round(found.nbytes / 1e6, 3)]


def _line(row: Row, name: str, measured: Measured) -> list[object]:
    estimate, change = measured.estimate, measured.change
    difference = change.difference if change else None
    return [
        row.label,
        row.shape,
        round(row.mean_na, 5),
        name,
        *(round(v, 5) for v in (estimate.value, estimate.interval.low, estimate.interval.high)),
        *(
            (round(difference.value, 5), round(difference.interval.low, 5), round(difference.interval.high, 5))
            if difference
            else ("", "", "")
        ),
        difference.unit if difference else "",
        f"{difference.p:.4g}" if difference else "",
        f"{change.p_adjusted:.4g}" if change else "",
        round(difference.detectable, 5) if difference else "",
        "" if measured.left is None else round(measured.left, 5),
        int(measured.on_front),
        row.runs,
        change.verdict if change else "baseline",
    ]
