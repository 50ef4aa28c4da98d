"""What is left of the experts under each prune plan: texts for tables, and series of a plot, one for each method."""

from __future__ import annotations

from dataclasses import dataclass

from eval.comparison import Comparison, Measure, Row
from eval.outputs.points import Point, make_point
from eval.results import PlanEntry

AXIS = "experts kept, % of their memory"


@dataclass(frozen=True)
class Experts:
    """Experts left in a layer on average, of how many, and the bytes of all layers' weights."""

    kept: float
    of: int
    nbytes: int

    @property
    def text(self) -> str:
        return f"{self.kept:.4g} of {self.of}"

    @property
    def megabytes(self) -> str:
        return f"{self.nbytes / 1e6:,.1f}"


@dataclass(frozen=True)
class Series:
    """Plans of one method under one schedule by rising memory, to the whole model where that ran under it too."""

    number: int
    name: str
    points: tuple[Point, ...]


def experts(comparison: Comparison, row: Row) -> Experts | None:
    """None where no schedule of the comparison ran under a plan: then nobody knows."""
    plan = row.plan or next((other.plan for other in comparison.rows if other.plan), None)
    if plan is None:
        return None
    if row.plan is None:
        return Experts(plan.num_experts, plan.num_experts, plan.whole_expert_bytes)
    return Experts(plan.mean_kept, plan.num_experts, plan.expert_bytes)


def series_names(comparison: Comparison) -> dict[str, str]:
    """Label -> series, of the schedules under other plans than the baseline's, in their order."""
    rows = [row for row in comparison.rows if row.plan != comparison.baseline.plan]
    return {row.label: method_name(row.plan) + row.label.removeprefix(row.plan.name) for row in rows if row.plan}


def series_numbers(comparison: Comparison) -> dict[str, int]:
    """Label -> number of its series, which looks go by."""
    names = series_names(comparison)
    order = list(dict.fromkeys(names.values()))
    return {label: order.index(name) + 1 for label, name in names.items()}  # 0 is the whole model's grey


def series(comparison: Comparison, measure: Measure) -> list[Series]:
    """Empty where no schedule ran under another plan than the baseline's, or nothing was measured."""
    if getattr(comparison.baseline, measure) is None:
        return []
    names, numbers = series_names(comparison), series_numbers(comparison)
    found = []
    for name in dict.fromkeys(names.values()):
        rows = [row for row in comparison.rows if names.get(row.label) == name]
        whole = [row for row in comparison.unpruned if row.hint == rows[0].hint]
        points = [make_point(comparison, row, measure, 100 * row.share) for row in [*rows, *whole]]
        found.append(Series(numbers[rows[0].label], name, tuple(sorted(points, key=lambda p: p.x))))
    return found


def method_name(plan: PlanEntry) -> str:
    """What made a plan, without amounts: `reap`, `soft, global budget + average by router`; else the plan's name."""
    method = plan.method
    if "criterion" not in method:
        return plan.name
    steps = [str(method["criterion"]) + (", global budget" if method.get("budget") == "global" else "")]
    if "merge" in method:
        steps.append(f"{method['merge']} by {method.get('merge_by', 'router')}")
    if "compensate" in method:
        steps.append(str(method["compensate"]))
    return " + ".join(steps)
