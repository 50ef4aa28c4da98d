"""summary.md: headlines, every point with what bounds it and what the cost model predicted, and what to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtest.analysis import SPEEDUP_OF, Analysis, Cell
from loadtest.outputs import why
from loadtest.outputs.notes import caveats, headlines, notes
from loadtest.outputs.words import ends, number
from sglang_moe_opt.files import write_atomically

FILE = "summary.md"


def write(analysis: Analysis, folder: Path) -> list[Path]:
    write_atomically(folder / FILE, page(analysis))
    return [folder / FILE]


def page(analysis: Analysis) -> str:
    """The whole file."""
    lines = [f"# Load test: {_text(analysis.model)}", "", *_list(headlines(analysis)), "", *_throughput(analysis)]
    points = analysis.explanation.points
    if points or analysis.explanation.notes:
        lines += ["", f"## {why.TITLE}", "", *_list(why.lines(analysis)), ""]
    if points:
        lines += [why.ABOUT, "", *_explained(analysis)]
    return "\n".join([*lines, "", *_list([*notes(analysis), *caveats(analysis)])]) + "\n"


def _throughput(analysis: Analysis) -> list[str]:
    """Total tok/s of each arm by load, with its speed-up."""
    lines = [_row(["load", *analysis.arms]), _row(["---"] + ["---:"] * len(analysis.arms))]
    for load in analysis.loads:
        cells = [analysis.cell(arm, load) for arm in analysis.arms]
        lines.append(_row([load.label, *("" if cell is None else _total(cell) for cell in cells)]))
    return [*lines, "", "Total tok/s; in brackets the speed-up with its interval, paired by round."]


def _total(cell: Cell) -> str:
    tag = SPEEDUP_OF[0]
    if tag not in cell.values:
        return ""
    found = cell.speedup.get(tag)
    between = "" if found is None or len(found.all) < 2 else f", {ends(found)}"
    return number(tag, cell.values[tag].median) + ("" if found is None else f" ({found.median:.2f}{between})")


def _explained(analysis: Analysis) -> list[str]:
    columns = why.columns(analysis)
    heads = [f"{name}, {unit}" if unit else name for name, unit, _ in columns]
    lines = [_row(["arm", "load", *heads]), _row(["---", "---"] + ["---:"] * len(columns))]
    for point in analysis.explanation.points:
        lines.append(_row([point.arm, point.load.label, *(text(point) for _, _, text in columns)]))
    if not all(point.is_counted for point in analysis.explanation.points):
        lines += ["", "\\* expected: the server did not count them."]
    return lines


def _list(texts: Sequence[str]) -> list[str]:
    return [f"- {_text(text)}" for text in texts]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(text: str) -> str:
    """Names may have any sign."""
    return text.replace("|", "\\|").replace("<", "&lt;")
