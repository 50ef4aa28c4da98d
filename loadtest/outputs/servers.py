"""The servers of runs with prune plans: how many experts each has left, and what it holds in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from loadtest.analysis import Analysis, Run, arm_names
from loadtest.folder import ArmEntry, ServerMemory

WHOLE_MODEL = "whole model"
MB = 1e6


@dataclass(frozen=True)
class ServerRow:
    """A server.

    Attributes:
        name: of its plan, or WHOLE_MODEL.
        arm: its first curve.
        kept: experts of each MoE layer.
        num_experts: of each MoE layer of the whole model.
        expert_mb, removed_mb: weights of the routed experts that are left, and of those that are not.
        memory: None where it was not measured.
        freed_mb: what its schedulers hold less than the whole model's; None for that one, and where not measured.
    """

    name: str
    arm: str
    kept: tuple[int, ...]
    num_experts: int
    expert_mb: float
    removed_mb: float
    memory: ServerMemory | None
    freed_mb: float | None

    @property
    def experts(self) -> str:
        """`32 of 64`, or `16 to 48 (mean 32.5) of 64`."""
        least, most = min(self.kept), max(self.kept)
        kept = f"{least}" if least == most else f"{least} to {most} (mean {fmean(self.kept):.3g})"
        return f"{kept} of {self.num_experts}"

    @property
    def scheduler_mb(self) -> float | None:
        return self.memory.scheduler_bytes / MB if self.memory else None

    @property
    def all_mb(self) -> float | None:
        return self.memory.all_bytes / MB if self.memory else None


COLUMNS = {
    "expert_mb": ("expert weights", "Weights of the routed experts that are left."),
    "scheduler_mb": ("scheduler", "Anonymous memory of the schedulers, in which a CPU's weights lie, once warm."),
    "freed_mb": ("less than whole", "What the schedulers hold less than those of the whole model."),
    "all_mb": (
        "all processes",
        "Memory of all its processes, pages shared with others split among them (PSS), once warm.",
    ),
}
"""Attributes in MB with their heads and meanings."""


def servers(analysis: Analysis) -> list[ServerRow]:
    """Those of runs with plans, in the order of the curves; other servers beside them are left out."""
    several = len(analysis.runs) > 1
    return [row for run in analysis.runs for row in _rows(run, run.name if several else None)]


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"


def _rows(run: Run, prefix: str | None) -> Iterator[ServerRow]:
    names = dict(zip((arm.label for arm in run.manifest.arms), arm_names(prefix, run.manifest), strict=True))
    firsts: dict[str, ArmEntry] = {}
    for arm in run.manifest.arms:
        if not arm.is_baseline_server:
            firsts.setdefault(arm.plan.name if arm.plan else WHOLE_MODEL, arm)
    known = next((arm.plan for arm in firsts.values() if arm.plan), None)
    if known is None:
        return
    base = firsts[WHOLE_MODEL].memory if WHOLE_MODEL in firsts else None
    for name, arm in firsts.items():
        kept_bytes = arm.plan.expert_bytes if arm.plan else known.whole_expert_bytes
        freed = base.scheduler_bytes - arm.memory.scheduler_bytes if arm.plan and base and arm.memory else None
        yield ServerRow(
            name=name if prefix is None else f"{prefix}: {name}",
            arm=names[arm.label],
            kept=tuple(arm.plan.kept) if arm.plan else (known.num_experts,) * len(known.kept),
            num_experts=known.num_experts,
            expert_mb=kept_bytes / MB,
            removed_mb=(known.whole_expert_bytes - kept_bytes) / MB,
            memory=arm.memory,
            freed_mb=None if freed is None else freed / MB,
        )
