"""report.html: one self-contained page that opens from a file, without network, in light and dark."""

from __future__ import annotations

import json
import shlex
from html import escape
from pathlib import Path

from eval.comparison import SHAPES, Comparison
from eval.outputs import kept, svg_kept
from eval.outputs.html_tables import schedules_table, tasks_table
from eval.outputs.notes import MEASURES, extent, headlines, notes
from eval.outputs.points import AXIS, FEW, make_point, points, shows_mean_na
from eval.outputs.svg import legend_marker, plot
from eval.results import PlanEntry
from eval.scores import Run
from eval.statistics import Interval
from sglang_moe_opt.files import write_atomically
from sglang_moe_opt.report import marks, series
from sglang_moe_opt.report import page as pages
from sglang_moe_opt.report.axes import NARROW, WIDE

FILE = "report.html"
HOW_TO_READ = (
    "Every schedule answered the same items as full, so differences are taken item by item: what both get right or "
    "wrong says nothing, and the error of a difference is much smaller than that of a score.",
    "“No loss detectable above x”: with 95 % confidence the loss is at most x. It is not “no loss”.",
    "“Loss of 2.1 ± 0.5”: the 95 % interval runs from 1.6 to 2.6. Hover over a verdict for the "
    "smallest true difference that this comparison alone would have called significant four times out of five.",
    "Points are percentage points of the score; bits per byte change in percent, where more is worse.",
    "Single tasks are tested by McNemar's exact test; differences of averages and of bits per byte by their paired "
    "standard error. Bootstrap intervals stand beside them in summary.json.",
    "The average is the unweighted mean of the tasks, as in the paper.",
    "Errors take items as independent. Pieces of one document are not quite: bits per byte may be less certain.",
)


def write(comparison: Comparison, folder: Path) -> list[Path]:
    write_atomically(folder / FILE, page(comparison))
    return [folder / FILE]


def page(comparison: Comparison) -> str:
    """The whole page."""
    body = f"""<p class="soft">{escape(_about(comparison))}</p>
{pages.headlines(headlines(comparison))}
{_legend(comparison)}
<div class="plots">{_plots(comparison)}{_kept_plots(comparison)}</div>
<h2>Schedules</h2>
{schedules_table(comparison)}
<h2>Tasks</h2>
<p class="soft">Score and change against {escape(comparison.baseline.label)}; coloured where the change stays
significant after Holm's correction for {comparison.task_comparisons} comparisons. Hover for the verdict.</p>
{tasks_table(comparison)}
<h2>Before you quote a number</h2>
{pages.notes([*notes(comparison), *HOW_TO_READ])}
<h2>What ran</h2>
{"".join(_run(run) for run in comparison.runs)}"""
    style = series.style() if comparison.has_plans else ""
    return pages.page(f"Accuracy with fewer experts: {comparison.model}", body, style)


def _about(comparison: Comparison) -> str:
    items = sum(task.items for task in comparison.tasks)
    runs = f" in {len(comparison.runs)} runs" if len(comparison.runs) > 1 else ""
    return (
        f"{extent(comparison)}, {len(comparison.tasks)} tasks, {items:,} items each{runs} · "
        f"{comparison.runs[-1].manifest.created} · model fingerprint {comparison.fingerprint[:12]}"
    )


def _legend(comparison: Comparison) -> str:
    present = {row.shape for row in comparison.unpruned} if shows_mean_na(comparison) else set()
    entries = [f"<li>{legend_marker(shape)}{shape}</li>" for shape in SHAPES if shape in present]
    names, numbers = kept.series_names(comparison), kept.series_numbers(comparison)
    for number, name in {numbers[label]: name for label, name in names.items()}.items():
        entries.append(f"<li>{marks.key(series.path(number), series.kind(number))}{escape(name)}</li>")
    entries.append(
        '<li><svg class="key" viewBox="-7 -7 14 14"><circle class="ring" r="6"/></svg>'
        f"{escape(comparison.baseline.label)}</li>"
    )
    if present:
        front = '<svg class="key" viewBox="0 0 14 14"><path class="front" d="M0,7H14"/></svg>'
        entries.append(f"<li>{front}Pareto front</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _plots(comparison: Comparison) -> str:
    figures = []
    for measure, name, _ in MEASURES:
        found = points(comparison, measure)
        if not found:
            continue
        noise = comparison.noise if measure == "average" else None
        band = Interval(found[0].y - noise.band, found[0].y + noise.band) if noise and noise.band else None
        low = measure == "bits_per_byte"
        drawn = "".join(plot(found, AXIS[measure], size, band, front_is_low=low) for size in (WIDE, NARROW))
        which = "" if len(found) <= FEW else " on the front; hover for the others"
        caption = f"Bars: 95 % interval of the paired difference from {comparison.baseline.label}{which}."
        caption += " Shaded: where repeats of one schedule fall." if band else ""
        figures.append(
            f"<figure><h2>{name.capitalize()} against mean na</h2>{drawn}"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(figures)


def _kept_plots(comparison: Comparison) -> str:
    figures = []
    for measure, name, _ in MEASURES:
        if not (found := kept.series(comparison, measure)):
            continue
        full = make_point(comparison, comparison.baseline, measure, 100 * comparison.baseline.share)
        drawn = "".join(svg_kept.plot(found, full, AXIS[measure], size) for size in (WIDE, NARROW))
        caption = f"Bars: 95 % interval of the paired difference from {comparison.baseline.label}."
        figures.append(
            f"<figure><h2>{name.capitalize()} against experts kept</h2>{drawn}"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(figures)


def _run(run: Run) -> str:
    manifest = run.manifest
    hints = "<br>".join(f"{escape(s.label)}: <code>{escape(json.dumps(s.hint))}</code>" for s in manifest.schedules)
    facts = {
        "command": f"<code>{escape(shlex.join(manifest.command))}</code>",
        "model": escape(manifest.model),
        "fingerprint": f"<code>{escape(manifest.model_fingerprint)}</code>",
        "endpoint": escape(manifest.url),
        "git revision": escape(manifest.git_revision or "unknown"),
        "versions": pages.pairs(manifest.versions),
        "machine": pages.pairs(manifest.machine),
        "seconds": f"{sum(manifest.seconds.values()):,.0f}",
        "schedules": pages.folded(f"{len(manifest.schedules)} hints", hints),
    }
    if plans := {schedule.plan.name: schedule.plan for schedule in manifest.schedules if schedule.plan}:
        facts["prune plans"] = pages.folded(f"{len(plans)} plans", "<br>".join(map(_plan, plans.values())))
    return pages.facts(f"{run.folder.name}, {manifest.created}", facts)


def _plan(plan: PlanEntry) -> str:
    exported = f", written to the checkpoint {plan.checkpoint}" if plan.checkpoint else ""
    what = f"keeps {', '.join(map(str, plan.kept))} of {plan.num_experts}; digest {plan.digest}{exported}"
    return f"{escape(plan.name)}: {escape(what)}; <code>{escape(json.dumps(plan.method))}</code>"
