"""A picture of router weights by layer: shares by rank, how many experts they are worth, and what a schedule keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sglang_moe_opt.files import replace_atomically
from sglang_moe_opt.magnitude.distribution import LayerDistribution
from sglang_moe_opt.pyplot import pyplot

BEFORE, AFTER = "#1950e5", "#d26b05"


def draw(
    before: Sequence[LayerDistribution], after: Sequence[LayerDistribution] | None, title: str, file: Path
) -> None:
    """Write a PNG. Raises NoMatplotlibError."""
    plt = pyplot()
    figure, grid = plt.subplots(
        2 if after else 1, 3, figsize=(12, 6.4 if after else 3.4), dpi=120, layout="constrained"
    )
    top = grid[0] if after else grid
    _heat(top[0], [one.share_by_rank for one in before], before, "rank by weight", "mean share of the token's weight")
    _band(top[1], before, after, "effective_quantiles", "experts that the weights are worth (exp of entropy)")
    _band(top[2], before, after, "first_share", "share of the largest weight")
    if after:
        bottom = grid[1]
        _heat(bottom[0], [one.share_by_rank for one in after], after, "rank by weight", "the same, under the schedule")
        _heat(bottom[1], [one.na_share for one in after], after, "experts kept", "share of tokens by experts kept", 0)
        _means(bottom[2], after)
    figure.suptitle(title, fontsize=10)
    replace_atomically(file, lambda path: figure.savefig(path, format="png"))
    plt.close(figure)


def _heat(
    axes: Any,
    rows: Sequence[Sequence[float]],
    layers: Sequence[LayerDistribution],
    label: str,
    title: str,
    first: int = 1,
) -> None:
    values = np.array(rows)
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes)
    axes.set_xticks(range(values.shape[1]), [str(first + column) for column in range(values.shape[1])])
    _layer_ticks(axes.set_yticks, layers)
    axes.set(xlabel=label, ylabel="layer")
    axes.set_title(title, fontsize=9)


def _band(
    axes: Any, before: Sequence[LayerDistribution], after: Sequence[LayerDistribution] | None, name: str, title: str
) -> None:
    for found, color, text in ((before, BEFORE, "full"), (after, AFTER, "schedule")):
        if not found:
            continue
        low, lower, middle, upper, high = np.array([getattr(one, name) for one in found]).T
        x = range(len(found))
        axes.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
        axes.fill_between(x, lower, upper, color=color, alpha=0.25, lw=0)
        axes.plot(x, middle, color=color, marker="o", ms=3, label=text)
    _layer_ticks(axes.set_xticks, before)
    axes.set(xlabel="layer", ylim=(0, None))
    axes.set_title(f"{title}: median, 50 and 90 %", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def _means(axes: Any, after: Sequence[LayerDistribution]) -> None:
    means = [one.mean_na for one in after]
    axes.bar(range(len(after)), means, color=AFTER)
    axes.axhline(float(np.mean(means)), color="0.4", lw=1, ls="--", label=f"mean {np.mean(means):.2f}")
    _layer_ticks(axes.set_xticks, after)
    axes.set(xlabel="layer")
    axes.set_title("mean experts kept", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _layer_ticks(set_ticks: Any, layers: Sequence[LayerDistribution]) -> None:
    step = -(-len(layers) // 16)
    at = range(0, len(layers), step)
    set_ticks(at, [str(layers[index].layer) for index in at])
