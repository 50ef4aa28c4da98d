"""report.html: one self-contained page with plots that answer to the pointer, sortable tables and what ran."""

from __future__ import annotations

import json
import shlex
from html import escape
from pathlib import Path

from loadtest.analysis import Analysis, Run
from loadtest.folder import ArmEntry
from loadtest.outputs import looks, why
from loadtest.outputs.html_tables import explained_table, metrics_table, points_table, servers_table
from loadtest.outputs.notes import headlines, notes
from loadtest.outputs.panels import GROUPS, Group, Panel, curves, kinds, labels
from loadtest.outputs.servers import servers
from loadtest.outputs.svg import legend_marker, plot
from loadtest.outputs.words import counted
from sglang_moe_opt.files import write_atomically
from sglang_moe_opt.report import page as pages
from sglang_moe_opt.report.axes import NARROW, WIDE

FILE = "report.html"
HOW_TO_READ = (
    "Numbers are of the window in which the load was whole: from the last user's first request to the first user's "
    "last answer. Requests that were sent before it, and what arrived outside of it, do not count.",
    "A point is the median of its rounds; the quartiles stand in hover texts of the table. Arms are measured in turns, "
    "in every second round in reverse, and a speed-up compares rounds with each other.",
    "An interval that includes 1 means that no difference could be shown, not that there is none.",
)
KINDS = {"closed": "closed loop", "poisson": "Poisson arrivals", "trace": "recorded arrivals"}


def write(analysis: Analysis, folder: Path) -> list[Path]:
    write_atomically(folder / FILE, page(analysis))
    return [folder / FILE]


def page(analysis: Analysis) -> str:
    """The whole page."""
    plots = "".join(_group(analysis, group, kind) for kind in kinds(analysis) for group in GROUPS)
    body = f"""<p class="soft">{escape(_about(analysis))}</p>
{pages.headlines(headlines(analysis))}
{_legend(analysis)}
{plots}
{_explanation(analysis)}{_servers(analysis)}<h2>Every point</h2>
<p class="soft">Click a column to sort by it. Speed-ups are tinted where their interval does not include 1.</p>
{points_table(analysis)}
<h2>Before you quote a number</h2>
{pages.notes([*notes(analysis), *HOW_TO_READ])}
<h2>How each number is derived</h2>
{metrics_table()}
<h2>What ran</h2>
{"".join(_run(run) for run in analysis.runs)}"""
    return pages.page(f"Load test: {analysis.model}", body, looks.style())


def _about(analysis: Analysis) -> str:
    parts = [counted(len(analysis.arms), "arm"), counted(len(analysis.loads), "load")]
    if len(analysis.runs) > 1:
        return " · ".join([*parts, f"{len(analysis.runs)} runs"])
    manifest = analysis.runs[0].manifest
    parts += [counted(manifest.rounds, "round"), f"prompts {manifest.prompts}"]
    parts.append(counted(manifest.output_len, "output token"))
    return " · ".join([*parts, manifest.created])


def _legend(analysis: Analysis) -> str:
    """Stays in view; each entry shows or hides its curve."""
    entries = "".join(
        f'<li><button type="button" aria-pressed="true" data-series="{number}" title="show or hide">'
        f"{legend_marker(number, is_imported=number >= len(analysis.arms))}{escape(name)}</button></li>"
        for number, name in enumerate(looks.names(analysis))
    )
    return f'<ul class="legend keys">{entries}</ul>'


def _group(analysis: Analysis, group: Group, kind: str) -> str:
    figures = {panel: figure for panel in group.panels if (figure := _figure(analysis, panel, kind))}
    if not figures:
        return ""
    abouts = [group.about, *(panel.about.format(baseline=_baseline(analysis)) for panel in figures if panel.about)]
    pairs = f'<div class="plots pairs">{"".join(figures.values())}</div>'
    title = group.title if len(kinds(analysis)) == 1 else f"{group.title}, {KINDS[kind]}"
    return f'<h2>{escape(title)}</h2><p class="soft">{escape(" ".join(abouts))}</p>{pairs}'


def _figure(analysis: Analysis, panel: Panel, kind: str) -> str:
    found = curves(analysis, panel, kind)
    if not any(not curve.is_imported for curve in found):
        return ""
    at = labels(analysis, kind, found)
    drawn = "".join(plot(panel, found, at, kind, size) for size in (WIDE, NARROW))
    return f"<figure><h3>{escape(panel.title)}</h3>{drawn}</figure>"


def _servers(analysis: Analysis) -> str:
    rows = servers(analysis)
    about = "They run at the same time; memory is the host's, measured once, after a warm-up with the largest load."
    if all(row.memory is None for row in rows):
        about = "Experts and weights follow from the prune plans; memory was not measured."
    return f'<h2>Servers</h2>\n<p class="soft">{about}</p>\n{servers_table(analysis, rows)}\n' if rows else ""


def _explanation(analysis: Analysis) -> str:
    """What bounds each point; a line where the model's sizes are not known."""
    told = why.lines(analysis)
    if not told:
        return ""
    table = explained_table(analysis) if analysis.explanation.points else ""
    about = f'<p class="soft">{escape(why.ABOUT)}</p>\n' if table else ""
    return f"<h2>{why.TITLE}</h2>\n{pages.notes(told)}\n{about}{table}\n"


def _baseline(analysis: Analysis) -> str:
    first = {analysis.baseline_of(arm) for arm in analysis.arms}
    return first.pop() if len(first) == 1 else "the first arm of their run"


def _run(run: Run) -> str:
    manifest = run.manifest
    length = f"{manifest.seconds:g} s" if manifest.requests is None else counted(manifest.requests, "request")
    bounds = ", ".join(f"{name} at most {bound:g} ms" for name, bound in manifest.goodput_ms.items())
    facts = {
        "command": f"<code>{escape(shlex.join(manifest.command))}</code>",
        "model": escape(manifest.model),
        "fingerprint": f"<code>{escape(manifest.model_fingerprint or 'unknown')}</code>",
        "arms": "<br>".join(_arm(arm) for arm in manifest.arms),
        "loads": escape(", ".join(manifest.loads)),
        "rounds": str(manifest.rounds),
        "prompts": escape(manifest.prompts),
        "output tokens": str(manifest.output_len),
        "a point": f"{length} or more, cut off at {manifest.max_seconds:g} s, ramp {manifest.ramp_s:g} s",
        **({"trace": escape(manifest.trace)} if manifest.trace else {}),
        **({"good requests": escape(bounds)} if bounds else {}),
        "API": escape(f"{manifest.api}, seed {manifest.seed}"),
        "git revision": escape(manifest.git_revision or "unknown"),
        "versions": pages.pairs(manifest.versions),
        "machine": pages.pairs(manifest.machine),
    }
    return pages.facts(f"{run.name}, {manifest.created}", facts)


def _arm(arm: ArmEntry) -> str:
    hints = "; ".join(
        f"{f'{100 * share:g} % ' if len(arm.hints) > 1 else ''}{label} <code>{escape(json.dumps(hint))}</code>"
        for label, (hint, share) in ((escape(name), value) for name, value in arm.hints.items())
    )
    na = "" if arm.mean_na is None else f", mean na {arm.mean_na:.3g}"
    plan = f", plan {escape(arm.plan.name)} <code>{arm.plan.digest}</code>" if arm.plan else ""
    return f"{escape(arm.label)} at {escape(arm.url)}{plan}{na}: {hints}"
