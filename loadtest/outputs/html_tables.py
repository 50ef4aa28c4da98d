"""The page's tables: every point with its caveats, what bounds it, servers of plans, how metrics are derived."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from loadtest.analysis import SPEEDUP_OF, Analysis, Cell, Spread
from loadtest.metrics import ALL, BY_TAG
from loadtest.outputs import looks, tips, why
from loadtest.outputs.servers import COLUMNS, ServerRow, megabytes
from loadtest.outputs.svg import legend_marker, row_key
from loadtest.outputs.words import counted, ends, interval, number, verdict
from sglang_moe_opt.report.tables import head, table

FIRST = ("total_tok_s",)
THEN = (
    "output_tok_s",
    "requests_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p50_ms",
    "tpot_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "e2e_p50_ms",
    "goodput_s",
    "good_share",
    "distinct_experts",
    "slots_kept",
    "mb_per_token",
    "gb_s",
    "bandwidth_share",
    "gflop_s",
    "compute_share",
    "running",
    "waiting",
    "client_cores",
    "failures",
)
TINT = {"faster": "gain", "slower": "loss"}


def points_table(analysis: Analysis) -> str:
    """One line for each arm and load; columns that are known of none are left out. Hover texts of plots live here."""
    known = {tag for cell in analysis.cells for tag in cell.values}
    first, then = ([tag for tag in tags if tag in known] for tags in (FIRST, THEN))
    has_speedup = any(cell.speedup for cell in analysis.cells)
    has_caveats = any(cell.caveats for cell in analysis.cells)
    heads = [head("arm", "text"), head("load")]
    heads += [_metric_head(tag) for tag in first]
    heads += [
        head("speed-up", small="interval", title="Of total tok/s over the first arm, paired by round")
    ] * has_speedup
    heads += [_metric_head(tag) for tag in then]
    heads += [head("caveats", "text")] * has_caveats
    rows = []
    for cell in analysis.cells:
        cells = [_name(analysis, cell), _load(analysis, cell)]
        cells += [_number(cell, tag) for tag in first]
        cells += [_speedup(cell.speedup.get(SPEEDUP_OF[0]))] * has_speedup
        cells += [_number(cell, tag) for tag in then]
        cells += [f'<td class="prose">{"<br>".join(map(escape, cell.caveats))}</td>'] * has_caveats
        rows.append(
            f'<tr data-row="{escape(row_key(cell.arm, cell.load))}" data-series="{analysis.arms.index(cell.arm)}" '
            f'data-tip="{escape(tips.of_cell(cell))}">{"".join(cells)}</tr>'
        )
    return table(heads, rows)


def explained_table(analysis: Analysis) -> str:
    """One line for each point that could be explained, with the sentence that says why."""
    columns = why.columns(analysis)
    heads = [head("arm", "text"), head("load"), *(head(name, small=escape(unit)) for name, unit, _ in columns)]
    heads.append(head("why", "text"))
    rows = []
    for point in analysis.explanation.points:
        marker = legend_marker(looks.names(analysis).index(point.arm))
        cells = [f'<th scope="row" class="wrap">{marker}&nbsp;{escape(point.arm)}</th>']
        cells.append(f'<td data-value="{analysis.loads.index(point.load)}">{point.load.label}</td>')
        cells += [f'<td data-value="{_sortable(text(point))}">{escape(text(point))}</td>' for _, _, text in columns]
        cells.append(f'<td class="prose">{escape(why.of_point(point))}</td>')
        rows.append(f'<tr data-series="{analysis.arms.index(point.arm)}">{"".join(cells)}</tr>')
    return table(heads, rows)


def _sortable(text: str) -> str:
    """Numbers without their separators and units."""
    return escape(text.replace(",", "").removesuffix(" %").removesuffix("*"))


def servers_table(analysis: Analysis, servers: Sequence[ServerRow]) -> str:
    """One line for each server, with the marker of its first arm."""
    heads = [head("server", "text"), head("experts a layer")]
    heads += [head(name, small="MB", title=about) for name, about in COLUMNS.values()]
    rows = []
    for server in servers:
        name = f"{legend_marker(looks.names(analysis).index(server.arm))}&nbsp;{escape(server.name)}"
        values = [getattr(server, column) for column in COLUMNS]
        cells = [f'<td data-value="{fmean(server.kept):.6g}">{server.experts}</td>']
        cells += [
            '<td data-value=""></td>' if value is None else f'<td data-value="{value:.6g}">{megabytes(value)}</td>'
            for value in values
        ]
        rows.append(f'<tr><th scope="row" class="wrap">{name}</th>{"".join(cells)}</tr>')
    return table(heads, rows)


def metrics_table() -> str:
    """Every metric with the sentence that says how it is derived."""
    rows = [
        f'<tr><th scope="row" class="wrap">{escape(metric.header)}</th><td class="prose">{escape(metric.about)}</td>'
        f'<td class="text">{escape(metric.unit)}</td><td class="text">{metric.better}</td>'
        f'<td class="text"><code>{metric.tag}</code></td></tr>'
        for metric in ALL
    ]
    return table([head(name, "text") for name in ("metric", "how it is derived", "unit", "better", "in files")], rows)


def _metric_head(tag: str) -> str:
    metric = BY_TAG[tag]
    small = "" if metric.unit in metric.header or metric.header.endswith("/s") else escape(metric.unit)
    return head(metric.header, small=small, title=metric.about)


def _name(analysis: Analysis, cell: Cell) -> str:
    arm = escape(cell.arm)
    doubt = f"<small>{counted(len(cell.caveats), 'caveat')}</small>" if cell.caveats else ""
    return f'<th scope="row" class="wrap">{legend_marker(looks.names(analysis).index(cell.arm))}&nbsp;{arm}{doubt}</th>'


def _load(analysis: Analysis, cell: Cell) -> str:
    return f'<td data-value="{analysis.loads.index(cell.load)}">{cell.load.label}</td>'


def _number(cell: Cell, tag: str) -> str:
    spread = cell.values.get(tag)
    if spread is None:
        return '<td data-value=""></td>'
    rounds = f"quartiles {number(tag, spread.low)} to {number(tag, spread.high)} of {len(spread.all)} rounds"
    title = f' title="{rounds}"' if len(spread.all) > 1 else ""
    return f'<td data-value="{spread.median:.6g}"{title}>{number(tag, spread.median)}</td>'


def _speedup(ratio: Spread | None) -> str:
    if ratio is None:
        return '<td data-value=""></td>'
    kind = TINT.get(verdict(ratio), "")
    between = f"<small>{ends(ratio)}</small>" if len(ratio.all) > 1 else ""
    return (
        f'<td data-value="{ratio.median:.6g}" class="{kind and kind + "-tint"}" title="{interval(ratio)}">'
        f"{ratio.median:.2f}{between}</td>"
    )
