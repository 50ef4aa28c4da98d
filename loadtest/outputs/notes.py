"""What an analysis says in plain sentences: the headlines, and what to know before quoting a number."""

from __future__ import annotations

from collections import Counter

from loadtest.analysis import SPEEDUP_OF, Analysis, Cell
from loadtest.load import Load
from loadtest.outputs.servers import megabytes, servers
from loadtest.outputs.words import ROUNDS_OF_AN_INTERVAL, at, counted, interval, labels, verdict, with_unit

HEADLINE = SPEEDUP_OF[0]
SETTINGS = ("model", "model_fingerprint", "prompts", "output_len", "api", "versions", "machine")
"""What runs should have in common for their curves to stand beside each other."""
NAMED = 5
"""Up to so many missing points or errors are named."""
MANY_ARMS = 5
"""Of more arms only the lowest and the highest throughput are named."""


def headlines(analysis: Analysis) -> list[str]:
    """The largest speed-up, where there is none, throughput under the largest load, memory of plans, and failures."""
    gains = [*_best(analysis), *_without_gain(analysis), *_largest_loads(analysis)]
    return [*gains, *_memory(analysis), _failures(analysis)]


def notes(analysis: Analysis) -> list[str]:
    """Caveats that follow from these results, the gravest first."""
    return [*_missing(analysis), *_differences(analysis), *_about_points(analysis), *_about_rounds(analysis)]


def caveats(analysis: Analysis) -> list[str]:
    """Those of single points, by arm and text, with the loads that they are about."""
    found: dict[tuple[str, str], list[Load]] = {}
    for cell in analysis.cells:
        for text in cell.caveats:
            found.setdefault((cell.arm, text), []).append(cell.load)
    return [f"{arm}, {labels(loads)}: {text}" for (arm, text), loads in found.items()]


def _best(analysis: Analysis) -> list[str]:
    compared = [cell for cell in analysis.cells if HEADLINE in cell.speedup]
    if not compared:
        return []
    best = max(compared, key=lambda cell: cell.speedup[HEADLINE].median)
    gained = [cell for cell in compared if verdict(cell.speedup[HEADLINE]) == "faster"]
    if not gained and verdict(best.speedup[HEADLINE]) != "measured once":
        return [f"No arm was faster at any load: none of {len(compared)} intervals lies above 1."]
    best = max(gained or [best], key=lambda cell: cell.speedup[HEADLINE].median)
    also = f"; see its caveats: {'; '.join(best.caveats)}" if best.caveats else ""
    return [f"Largest speed-up: {best.arm}, {_times(analysis, best)}{also}."]


def _without_gain(analysis: Analysis) -> list[str]:
    lines = []
    for arm in analysis.arms:
        cells = [cell for cell in analysis.cells if cell.arm == arm and HEADLINE in cell.speedup]
        among = [cell.load for cell in cells]
        if same := [cell for cell in cells if verdict(cell.speedup[HEADLINE]) == "no difference"]:
            lines.append(
                f"{arm} buys nothing that could be shown {at(*(cell.load for cell in same), among=among)}: "
                f"the interval includes 1 ({len(same)} of {len(cells)} loads)."
            )
        if slower := [cell for cell in cells if verdict(cell.speedup[HEADLINE]) == "slower"]:
            worst = min((cell.speedup[HEADLINE] for cell in slower), key=lambda ratio: ratio.median)
            where = at(*(cell.load for cell in slower), among=among)
            lines.append(
                f"{arm} is slower than {analysis.baseline_of(arm)} {where}: down to {worst.median:.2f} times "
                f"its total tokens per second ({interval(worst)})."
            )
    return lines


def _largest_loads(analysis: Analysis) -> list[str]:
    """One sentence for each kind of load."""
    lines = []
    for kind in dict.fromkeys(cell.load.kind for cell in analysis.cells):
        load = max(cell.load for cell in analysis.cells if cell.load.kind == kind)
        found = [cell for arm in analysis.arms if (cell := analysis.cell(arm, load)) and HEADLINE in cell.values]
        if len(found) > MANY_ARMS:
            ordered = sorted(found, key=lambda cell: cell.values[HEADLINE].median)
            lines.append(f"Total throughput {at(load)}: from {_total(ordered[0])} to {_total(ordered[-1])}.")
        elif found:
            lines.append(f"Total throughput {at(load)}: {', '.join(map(_total, found))}.")
    return lines


def _total(cell: Cell) -> str:
    return f"{cell.arm} {with_unit(HEADLINE, cell.values[HEADLINE].median)}"


def _memory(analysis: Analysis) -> list[str]:
    """One sentence for each plan."""
    return [
        f"{row.name} keeps {row.experts} experts a layer, {megabytes(row.removed_mb)} MB of weights less: "
        f"its scheduler holds {megabytes(row.scheduler_mb)} MB, {megabytes(abs(row.freed_mb))} MB "
        f"{'less' if row.freed_mb >= 0 else 'more'} than the whole model's."
        for row in servers(analysis)
        if row.freed_mb is not None
    ]


def _failures(analysis: Analysis) -> str:
    requests = sum(sum(cell.values["requests"].all) for cell in analysis.cells if "requests" in cell.values)
    if not analysis.failures:
        return f"None of {requests:,.0f} requests failed."
    errors = sum((Counter(cell.errors) for cell in analysis.cells), Counter())
    named = ", ".join(f"{count} × {error}" for error, count in errors.most_common(NAMED))
    more = ", ..." if len(errors) > NAMED else ""
    return f"{analysis.failures:,} of {requests:,.0f} requests failed: {named}{more}."


def _times(analysis: Analysis, cell: Cell) -> str:
    ratio = cell.speedup[HEADLINE]
    return (
        f"{ratio.median:.2f} times the total tokens per second of {analysis.baseline_of(cell.arm)} "
        f"{at(cell.load)} ({interval(ratio)})"
    )


def _missing(analysis: Analysis) -> list[str]:
    lines = []
    for run in analysis.runs:
        if run.missing:
            some = "; ".join(run.missing[:NAMED]) + ("; ..." if len(run.missing) > NAMED else "")
            lines.append(f"{run.name}: {counted(len(run.missing), 'point')} did not run: {some}.")
        if run.is_summary:
            lines.append(f"{run.name}: reported from its summary.json; the points themselves are not in the folder.")
    return lines


def _differences(analysis: Analysis) -> list[str]:
    manifests = [run.manifest for run in analysis.runs]
    different = [
        name.replace("_", " ")
        for name in SETTINGS
        if any(getattr(m, name) != getattr(manifests[0], name) for m in manifests)
    ]
    found = [f"The runs differ in {', '.join(different)}: their curves are not alike in all else."] if different else []
    if len(manifests) > 1:
        found.append("Arms of different runs were not measured in turns: a drift of the machine lies between them.")
    return found


def _about_points(analysis: Analysis) -> list[str]:
    found = []
    if doubtful := [cell for cell in analysis.cells if cell.caveats]:
        found.append(f"{len(doubtful)} of {len(analysis.cells)} points have caveats, named in the table of points.")
    others = [arm.label for run in analysis.runs for arm in run.manifest.arms if arm.is_baseline_server]
    if others:
        found.append(f"{', '.join(dict.fromkeys(others))}: another server than the one under test.")
    if analysis.imported:
        found.append(
            "Points of SGLang's bench_serving, hollow in the plots, divide by the whole run, beginning and end "
            "included, and were not measured in turns with the others."
        )
    return found


def _about_rounds(analysis: Analysis) -> list[str]:
    rounds = [len(cell.speedup[HEADLINE].all) for cell in analysis.cells if HEADLINE in cell.speedup]
    if not rounds:
        return []
    if max(rounds) == 1:
        return ["Every point was measured once: nothing tells a speed-up from chance."]
    found = []
    if min(rounds) < ROUNDS_OF_AN_INTERVAL:
        found.append(f"With fewer than {ROUNDS_OF_AN_INTERVAL} rounds their range stands in place of a 95 % interval.")
    if len(rounds) > 1:
        found.append(
            f"Intervals are for one point at a time: of {len(rounds)} that buy nothing, "
            f"{0.05 * len(rounds):.1f} would exclude 1 by chance."
        )
    return found
