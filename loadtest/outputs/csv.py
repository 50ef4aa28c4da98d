"""summary.csv: one line for each arm, load and metric, for spreadsheets; speed-ups are metrics of their own."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from statistics import fmean

from loadtest.analysis import Analysis, Cell
from loadtest.load import Load
from loadtest.metrics import BY_TAG
from loadtest.outputs.explained_json import COLUMNS as EXPLAINED
from loadtest.outputs.explained_json import point_object, rounded
from loadtest.outputs.servers import COLUMNS as COLUMNS_MB
from loadtest.outputs.servers import servers
from loadtest.outputs.words import interval_kind
from sglang_moe_opt.files import write_atomically

FILE = "summary.csv"
COLUMNS = ("arm", "load", "load_kind", "load_value", "metric", "value", "low", "high", "ends", "unit", "rounds")
"""`ends` says what low and high are: quartiles of the rounds, a 95 % interval, or the range of the rounds."""


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """What explains a point comes behind the metrics. Then points of other tools, with their source as the arm and
    without low and high.

    Last come the servers of plans, without a load: their first arm stands for them.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in analysis.cells:
        writer.writerows(_lines(cell))
    for explained in analysis.explanation.points:
        known = point_object(explained)
        where = _where(explained.arm, explained.load)
        for tag, unit in EXPLAINED.items():
            if known[tag] is not None:
                writer.writerow([*where, tag, known[tag], "", "", "", unit, 1])
        for name, share in (known["shares"] or {}).items():
            writer.writerow([*where, f"step_share_{name}", share, "", "", "", "", 1])
    for point in analysis.imported:
        where = _where(point.source, Load("closed", point.concurrency))
        for tag, value in point.values.items():
            writer.writerow([*where, tag, rounded(value), "", "", "", BY_TAG[tag].unit, 1])
    for row in servers(analysis):
        held = {"experts_per_layer": fmean(row.kept), **{tag: getattr(row, tag) for tag in COLUMNS_MB}}
        for tag, number in held.items():
            if number is not None:
                unit = "MB" if tag in COLUMNS_MB else ""
                writer.writerow([row.arm, "", "", "", tag, rounded(number), "", "", "", unit, 1])
    write_atomically(folder / FILE, text.getvalue())
    return [folder / FILE]


def _lines(cell: Cell) -> Iterator[list[object]]:
    where = _where(cell.arm, cell.load)
    for tag, s in cell.values.items():
        values = map(rounded, (s.median, s.low, s.high))
        yield [*where, tag, *values, "quartiles", BY_TAG[tag].unit, len(s.all)]
    for tag, s in cell.speedup.items():
        values = map(rounded, (s.median, s.low, s.high))
        yield [*where, f"speedup_{tag}", *values, interval_kind(s), "times", len(s.all)]


def _where(arm: str, load: Load) -> tuple[str, str, str, float]:
    return arm, load.label, load.kind, load.value
