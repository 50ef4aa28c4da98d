"""The comparison as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from eval.comparison import Comparison, Measured
from eval.outputs.kept import experts
from eval.outputs.notes import extent, headlines, notes


def show(comparison: Comparison, console: Console) -> None:
    """Print the schedules with verdicts, then what to know about them."""
    table = Table(title=f"{comparison.model}: {extent(comparison)}", title_justify="left")
    table.add_column("schedule", overflow="fold")
    table.add_column("mean na", justify="right")
    if comparison.has_plans:
        table.add_column("experts kept", justify="right")
        table.add_column("expert MB", justify="right")
    has_average, has_bits = comparison.baseline.average is not None, comparison.baseline.bits_per_byte is not None
    for wanted, unit, decimals in ((has_average, "average", 1), (has_bits, "bits/byte", 4)):
        if wanted:
            table.add_column(unit, justify="right", min_width=4 + decimals)
            table.add_column(f"against {comparison.baseline.label if comparison.baseline.plan else 'full'}", ratio=1)
    for row in comparison.rows:
        cells = [row.label, ("≤ " if row.shape == "dynamic" else "") + f"{row.mean_na:.2f}"]
        if kept := experts(comparison, row):
            cells += [kept.text, kept.megabytes]
        for measured, decimals in ((row.average, 1), (row.bits_per_byte, 4)):
            if measured is not None:
                cells += [f"{measured.estimate.value:.{decimals}f}", _against(measured)]
        table.add_row(*cells)
    console.print(table)
    for line in headlines(comparison):
        console.print(line, highlight=False, markup=False)
    for line in notes(comparison):
        console.print(f"- {line}", highlight=False, markup=False)


def _against(measured: Measured) -> str:
    if measured.change is None:
        interval = measured.estimate.interval
        decimals = 1 if interval.half > 0.05 else 4
        return f"baseline, ± {interval.half:.{decimals}f}"
    return measured.change.verdict
