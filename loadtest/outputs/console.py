"""The analysis as a table on the terminal, then what to know about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.analysis import SPEEDUP_OF, Analysis, Cell
from loadtest.outputs.notes import caveats, headlines, notes
from loadtest.outputs.servers import COLUMNS, ServerRow, megabytes, servers
from loadtest.outputs.words import counted, ends, number

Text = Callable[[Cell], str]

OUTPUT, GOOD, FAILED, CAVEATS = "output\ntok/s", "good/s", "failed", "caveats"
TTFT, TPOT = "TTFT ms\np50, p99", "TPOT ms\np50, p99"
LESS = (OUTPUT, CAVEATS, TPOT, GOOD, TTFT)
"""What is left out first."""
LONG = 28
"""Characters of an arm's name; longer ones are folded."""
WIDE = 1000
"""Characters: more than any table needs."""


def show(analysis: Analysis, console: Console) -> None:
    """Print a line for each load and arm, the servers of plans, the headlines, and every caveat."""
    columns = _columns(analysis)
    table = _table(analysis, columns)
    for head in LESS:  # on a narrow terminal
        wanted = console.measure(table, options=console.options.update(width=WIDE)).maximum
        if wanted > console.width and head in columns:
            del columns[head]
            table = _table(analysis, columns)
    console.print(table)
    if rows := servers(analysis):
        console.print(_servers(rows))
    for line in headlines(analysis):
        console.print(line, highlight=False, markup=False)
    for line in [*notes(analysis), *caveats(analysis)]:
        console.print(f"- {line}", highlight=False, markup=False)


def _table(analysis: Analysis, columns: dict[str, Text]) -> Table:
    title = f"{analysis.model}: {counted(len(analysis.arms), 'arm')}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load", no_wrap=True)
    longest = max(map(len, analysis.arms))
    table.add_column("arm", overflow="fold", no_wrap=longest <= LONG, max_width=LONG)
    for head in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for load in analysis.loads:
        for cell in (c for arm in analysis.arms if (c := analysis.cell(arm, load))):
            table.add_row(load.label, cell.arm, *(text(cell) for text in columns.values()))
        table.add_section()
    return table


def _servers(rows: Sequence[ServerRow]) -> Table:
    table = Table(title="Servers, MB", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("server", overflow="fold", max_width=LONG)
    table.add_column("experts a layer")
    for head, _ in COLUMNS.values():
        table.add_column(head.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.experts, *(megabytes(getattr(row, column)) for column in COLUMNS))
    return table


def _columns(analysis: Analysis) -> dict[str, Text]:
    """Head and text of each column; those that would be empty are left out."""
    cells = analysis.cells
    columns: dict[str, Text] = {
        "total\ntok/s": lambda cell: _median(cell, "total_tok_s"),
        OUTPUT: lambda cell: _median(cell, "output_tok_s"),
    }
    if any(cell.speedup for cell in cells):
        columns["speed-up\n(95 %)"] = _speedup
    columns[TTFT] = lambda cell: f"{_median(cell, 'ttft_p50_ms')}, {_median(cell, 'ttft_p99_ms')}"
    columns[TPOT] = lambda cell: f"{_median(cell, 'tpot_p50_ms')}, {_median(cell, 'tpot_p99_ms')}"
    if any("goodput_s" in cell.values for cell in cells):
        columns[GOOD] = lambda cell: _median(cell, "goodput_s")
    if analysis.failures:
        columns[FAILED] = lambda cell: str(sum(cell.errors.values()) or "")
    if any(cell.caveats for cell in cells):
        columns[CAVEATS] = lambda cell: str(len(cell.caveats) or "")
    return columns


def _median(cell: Cell, tag: str) -> str:
    return number(tag, cell.values[tag].median) if tag in cell.values else "-"


def _speedup(cell: Cell) -> str:
    ratio = cell.speedup.get(SPEEDUP_OF[0])
    if ratio is None:
        return ""
    return f"{ratio.median:.2f} ({ends(ratio, '-')})" if len(ratio.all) > 1 else f"{ratio.median:.2f}"
