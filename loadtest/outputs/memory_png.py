"""memory.png: what the schedulers of pruned servers hold beside the whole model's, and how much of it experts are."""

from __future__ import annotations

from pathlib import Path

from loadtest.analysis import Analysis
from loadtest.outputs import looks
from loadtest.outputs.servers import megabytes, servers
from sglang_moe_opt.pyplot import pyplot

FILE = "memory.png"


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """A bar for each server; nothing where no plan ran or memory was not measured."""
    rows = [row for row in servers(analysis) if row.scheduler_mb is not None]
    if not rows:
        return []
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.5 * len(rows)), dpi=144, layout="constrained")
    for place, row in enumerate(rows):
        color = looks.LIGHT[looks.color(analysis.arms.index(row.arm))]
        held = row.scheduler_mb or 0.0
        axes.barh(place, row.expert_mb, color=color)
        axes.barh(place, max(0.0, held - row.expert_mb), left=row.expert_mb, color=color, alpha=0.35)
        axes.text(held, place, f" {megabytes(held)}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row.name}\n{row.experts}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("MB of the scheduler, once warm; solid: weights of its routed experts")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.suptitle(analysis.model, fontsize=9)
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return [path]
