"""The report's tables: schedules with verdicts, and every task under every schedule."""

from __future__ import annotations

from html import escape

from eval.comparison import Change, Comparison, Measure, Measured, Row
from eval.outputs.kept import experts, series_numbers
from eval.outputs.notes import MEASURES
from eval.outputs.svg import layer_bars, legend_marker, range_bar
from eval.results import TaskEntry
from eval.statistics import Interval
from eval.verdicts import is_significant
from sglang_moe_opt.report import marks, series
from sglang_moe_opt.report.tables import head, table


def schedules_table(comparison: Comparison) -> str:
    """One line per schedule: for each measure its value, difference and verdict, and what the schedule does."""
    measures = [(m, name) for m, name, _ in MEASURES if getattr(comparison.baseline, m) is not None]
    heads = [head("schedule", "text"), head("mean na"), *_kept_heads(comparison)]
    for _, name in measures:
        heads += [head(name), head("verdict", "text"), '<th scope="col">95 %</th>']
    heads.append(head("layers", "text"))
    top = max(na for row in comparison.rows for na in row.layers)
    numbers = series_numbers(comparison)
    body = []
    for row in comparison.rows:
        cells = [_name(row, numbers.get(row.label)), _mean_na(row), *_kept(comparison, row)]
        for measure, _ in measures:
            cells += _measure_cells(getattr(row, measure), measure, _reach(comparison, measure))
        cells.append(f'<td class="text">{row.shape}{layer_bars(row.layers, top)}</td>')
        body.append(f'<tr data-row="{escape(row.label)}">{"".join(cells)}</tr>')
    return table(heads, body)


def tasks_table(comparison: Comparison) -> str:
    """One line per schedule, one column per task: score and difference, coloured where it is significant."""
    heads = [head("schedule", "text"), head("mean na"), *_kept_heads(comparison)[:1]]
    heads += [head(task.name, small=_about(task, comparison)) for task in comparison.tasks]
    numbers = series_numbers(comparison)
    body = []
    for row in comparison.rows:
        cells = [_name(row, numbers.get(row.label)), _mean_na(row), *_kept(comparison, row)[:1]]
        cells += [_task_cell(row.tasks[task.name], task) for task in comparison.tasks]
        body.append(f'<tr data-row="{escape(row.label)}">{"".join(cells)}</tr>')
    return table(heads, body)


def _kept_heads(comparison: Comparison) -> list[str]:
    """Columns that are there where a schedule ran under a plan."""
    return [head("experts kept", title="in a layer, on average"), head("expert MB")] if comparison.has_plans else []


def _kept(comparison: Comparison, row: Row) -> list[str]:
    if (found := experts(comparison, row)) is None:
        return []
    layers = f' title="{", ".join(map(str, row.plan.kept))}"' if row.plan else ""
    return [
        f'<td data-value="{found.kept:.5f}"{layers}>{found.text}</td>',
        f'<td data-value="{found.nbytes}">{found.megabytes}</td>',
    ]


def _name(row: Row, number: int | None) -> str:
    """With the marker that the plots have for it: of its series under a plan, else of its shape."""
    again = f"<small>{row.runs} runs</small>" if row.runs > 1 else ""
    label = escape(row.label)
    marker = legend_marker(row.shape) if number is None else marks.key(series.path(number), series.kind(number))
    return f'<th scope="row" title="{label} ({row.shape})">{marker} {label}{again}</th>'


def _mean_na(row: Row) -> str:
    return f'<td data-value="{row.mean_na:.5f}">{"≤ " if row.shape == "dynamic" else ""}{row.mean_na:.2f}</td>'


def _measure_cells(measured: Measured, measure: Measure, reach: Interval) -> list[str]:
    value, decimals = measured.estimate.value, 1 if measure == "average" else 4
    shown = f'<td data-value="{value:.6f}">{value:.{decimals}f}'
    if measured.change is None:
        half = measured.estimate.interval.half
        return [f"{shown}<small>± {half:.{decimals}f}</small></td>", '<td class="verdict">baseline</td>', "<td></td>"]
    change, difference = measured.change, measured.change.difference
    unit, decimals = ("", 1) if measure == "average" else (" %", 2)
    front = "<small>Pareto front</small>" if measured.on_front else ""
    kind = _kind(change)
    detectable = f"a true difference of {difference.detectable:.{decimals}f}{unit} would probably have been seen"
    return [
        f"{shown}<small>{difference.value:+.{decimals}f}{unit}</small></td>",
        f'<td class="verdict {kind}" title="{detectable}">{_tied(change.verdict)}{front}</td>',
        f"<td>{range_bar(difference.interval, difference.value, reach, kind or 'none')}</td>",
    ]


def _reach(comparison: Comparison, measure: Measure) -> Interval:
    """The range that the small axes span: zero and every interval."""
    changes = [getattr(row, measure).change for row in comparison.rows[1:]]
    ends = [end for c in changes for end in (c.difference.interval.low, c.difference.interval.high)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return Interval(low, high) if high > low else Interval(-1.0, 1.0)


def _about(task: TaskEntry, comparison: Comparison) -> str:
    parts = [
        task.metric.replace("_", " "),
        f"{task.items} items" if task.metric != "bits_per_byte" else f"{task.items} texts",
    ]
    if task.chance is not None:
        blind = not comparison.beats_chance[task.name]
        parts.append(f"chance {100 * task.chance:.0f}" + (", full not above" if blind else ""))
    return "<br>".join(map(escape, parts))


def _task_cell(measured: Measured, task: TaskEntry) -> str:
    value, decimals = measured.estimate.value, 4 if task.metric == "bits_per_byte" else 1
    shown = f"{value:.{decimals}f}"
    if measured.change is None:
        half = measured.estimate.interval.half
        return f'<td data-value="{value:.6f}">{shown}<small>± {half:.{decimals}f}</small></td>'
    difference = measured.change.difference
    kind = _kind(measured.change)
    change = f"{difference.value:+.2f} %" if difference.unit == "percent" else f"{difference.value:+.1f}"
    tint = f' class="{kind}-tint"' if kind else ""
    return (
        f'<td data-value="{value:.6f}"{tint} title="{escape(measured.change.verdict)}">{shown}'
        f'<small class="{kind}">{change}</small></td>'
    )


def _tied(text: str) -> str:
    """Escaped, without line breaks inside `± 0.5` and `0.5 %`."""
    return escape(text).replace("± ", "±\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def _kind(change: Change) -> str:
    if not is_significant(change.difference, change.p_adjusted):
        return ""
    return "loss" if change.difference.is_loss else "gain"
