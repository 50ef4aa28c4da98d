"""What a reader must know before quoting a number of this comparison, in sentences."""

from __future__ import annotations

from typing import Literal

from eval.compare import Comparison

MARGIN = 1.0
"""The loss (points, or percent of bits per byte) that a cheaper schedule has to stay below to be named."""

PAPER_TASKS = 6
MANY_SCHEDULES = 10

Measure = Literal["average", "bits_per_byte"]
MEASURES: tuple[tuple[Measure, str, str], ...] = (
    ("average", "average score", " point"),
    ("bits_per_byte", "bits per byte", " %"),
)


def headlines(comparison: Comparison) -> list[str]:
    """For each measure, the fewest experts whose cost is below the margin with 95 % confidence."""
    lines = []
    for measure, name, unit in MEASURES:
        if getattr(comparison.baseline, measure) is None or len(comparison.rows) < 2:
            continue
        row = comparison.fewest_within(measure, MARGIN)
        within = f"Less than {MARGIN:g}{unit} of {name} lost, with 95 % confidence"
        if row is None:
            lines.append(f"{within}: no schedule with fewer experts than {comparison.baseline.label}.")
        else:
            bound = "at most " if row.shape == "dynamic" else ""
            lines.append(
                f"{within}: {row.label} (mean na {bound}{row.mean_na:.3g} of {comparison.baseline.mean_na:.3g}): "
                f"{getattr(row, measure).change.verdict}."
            )
    return lines


def notes(comparison: Comparison) -> list[str]:
    """Caveats that follow from these results, the gravest first."""
    found = [f"Left out: {text}." for text in comparison.incomplete]
    blind = [name for name, beats in comparison.beats_chance.items() if not beats]
    if blind:
        found.append(
            f"{comparison.baseline.label} itself is not better than guessing on {', '.join(blind)}: "
            "no loss can show there, and the average is diluted by it."
        )
    names = [task.name for task in comparison.averaged]
    if names and len(names) != PAPER_TASKS:
        found.append(f"The average is over {len(names)} tasks ({', '.join(names)}), not the paper's {PAPER_TASKS}.")
    cut = [f"{task.name} {task.items} of {task.total}" for task in comparison.tasks if task.items < task.total]
    if cut:
        found.append(f"Only part of the items ran: {', '.join(cut)}.")
    if len({tuple(sorted(run.manifest.versions.items())) for run in comparison.runs}) > 1:
        found.append("The runs used different software versions; what they share is the model and the items.")
    found += _about_tests(comparison)
    if any(row.shape == "dynamic" for row in comparison.rows):
        found.append(
            "For dynamic schedules mean na is an upper bound: they keep fewer experts where the weights allow."
        )
    return found


def _about_tests(comparison: Comparison) -> list[str]:
    found = []
    if comparison.headline_comparisons > 1:
        found.append(
            f"A loss or gain is called one only if it stays significant after Holm's correction for "
            f"{comparison.headline_comparisons} schedules (single tasks: {comparison.task_comparisons} comparisons). "
            "Intervals are for one schedule at a time."
        )
    if comparison.headline_comparisons > MANY_SCHEDULES:
        found.append("The best of many schedules is partly the luckiest: run it again before you rely on its score.")
    noise = comparison.noise
    if noise is None:
        found.append(
            "Every schedule ran once. Items that flip at random between runs widen the paired intervals; "
            "a shift that moves a whole run would not show."
        )
    else:
        found.append(
            f"Repeats: {100 * noise.flip_rate:.2g} % of the items score differently in two runs of one schedule; "
            f"their averages differ by less than {noise.band:.2f} points 95 times in 100."
        )
    return found
