"""What a reader must know before quoting a number of this comparison, in sentences."""

from __future__ import annotations

from eval.comparison import Comparison, Measure

MARGIN = 1.0
"""The loss (points, or percent of bits per byte) that a cheaper schedule has to stay below to be named."""

PAPER_TASKS = 6
MANY_SCHEDULES = 10

MEASURES: tuple[tuple[Measure, str, str], ...] = (
    ("average", "average score", " point"),
    ("bits_per_byte", "bits per byte", " %"),
)


def extent(comparison: Comparison) -> str:
    """How much there is: `5 schedules`, with the plans that some of them ran under."""
    plans = len({row.plan.digest for row in comparison.rows if row.plan})
    under = f", {plans} prune plan{'s' * (plans > 1)}" if plans else ""
    return f"{len(comparison.rows)} schedules{under}"


def headlines(comparison: Comparison) -> list[str]:
    """For each measure, the fewest experts and the least memory whose cost is below the margin with 95 % confidence."""
    lines = []
    for measure, name, unit in MEASURES:
        if getattr(comparison.baseline, measure) is None or len(comparison.rows) < 2:
            continue
        within = f"Less than {MARGIN:g}{unit} of {name} lost, with 95 % confidence"
        if len(comparison.unpruned) > 1:
            lines.append(f"{within}: {_fewest(comparison, measure)}.")
        if len(comparison.unpruned) < len(comparison.rows):
            lines.append(f"{within}, in the least memory: {_smallest(comparison, measure)}.")
    return lines


def _fewest(comparison: Comparison, measure: Measure) -> str:
    row = comparison.fewest_within(measure, MARGIN)
    if row is None:
        return f"no schedule with fewer experts than {comparison.baseline.label}"
    bound = "at most " if row.shape == "dynamic" else ""
    na = f"mean na {bound}{row.mean_na:.3g} of {comparison.baseline.mean_na:.3g}"
    return f"{row.label} ({na}): {getattr(row, measure).change.verdict}"


def _smallest(comparison: Comparison, measure: Measure) -> str:
    row = comparison.smallest_within(measure, MARGIN)
    if row is None:
        return f"no plan with fewer experts than {comparison.baseline.label}"
    share = f"{100 * row.share / comparison.baseline.share:.3g} % of the experts' weights"
    return f"{row.label} ({share}): {getattr(row, measure).change.verdict}"


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
