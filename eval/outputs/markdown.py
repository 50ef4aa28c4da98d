"""summary.md: the table for a README, with 95 % intervals of the paired differences."""

from __future__ import annotations

from pathlib import Path

from eval.comparison import Comparison, Measured, Row
from eval.outputs.kept import experts
from eval.outputs.notes import extent, headlines, notes
from sglang_moe_opt.files import write_atomically

FILE = "summary.md"


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """One line per schedule: mean na, the two headline measures and every task, each with its difference."""
    write_atomically(folder / FILE, page(comparison))
    return [folder / FILE]


def page(comparison: Comparison) -> str:
    """The whole file."""
    lines = [f"# {comparison.model}: {extent(comparison)}", "", *table(comparison), "", _legend(comparison)]
    lines += ["", *(f"- {line}" for line in [*headlines(comparison), *notes(comparison)])]
    return "\n".join(lines) + "\n"


def table(comparison: Comparison) -> list[str]:
    """The table's lines."""
    tasks = [task.name for task in comparison.tasks if task.name != "bits_per_byte"]
    full = comparison.baseline
    headline = [
        (name, head, decimals)
        for name, head, decimals in (("average", "average", 1), ("bits_per_byte", "bits/byte", 4))
        if getattr(full, name) is not None
    ]
    kept = ["experts kept", "expert MB"] if comparison.has_plans else []
    heads = ["schedule", "layers", "mean na", *kept, *(head for _, head, _ in headline), *tasks]
    lines = [_line(heads), _line(["---"] * 2 + ["---:"] * (len(heads) - 2))]
    for row in comparison.rows:
        cells = [row.label, _layers(row), f"{'≤ ' if row.shape == 'dynamic' else ''}{row.mean_na:.2f}"]
        if found := experts(comparison, row):
            cells += [found.text, found.megabytes]
        cells += [_cell(getattr(row, name), decimals) for name, _, decimals in headline]
        cells += [_cell(row.tasks[task], 1) for task in tasks]
        lines.append(_line(cells))
    return lines


def _layers(row: Row) -> str:
    return str(row.layers[0]) if len(set(row.layers)) == 1 else " ".join(map(str, row.layers))


def _cell(measured: Measured, decimals: int) -> str:
    value = f"{measured.estimate.value:.{decimals}f}"
    if measured.change is None:
        return f"{value} ± {measured.estimate.interval.half:.{max(1, decimals - 1)}f}"
    difference = measured.change.difference
    unit = "" if difference.unit == "points" else " %"
    decimals = 1 if difference.unit == "points" else 2
    low, high = (f"{v:+.{decimals}f}" for v in (difference.interval.low, difference.interval.high))
    return f"{value} ({low} to {high}{unit})"


def _legend(comparison: Comparison) -> str:
    return (
        f"In brackets: 95 % interval of the paired difference from `{comparison.baseline.label}`, in points of accuracy"
        " or percent of bits per byte. The first line shows the sampling error of the score itself."
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
