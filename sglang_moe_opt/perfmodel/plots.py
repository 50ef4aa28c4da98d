"""PNG plots of predictions, and of predictions beside measurements. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.files import replace_atomically
from sglang_moe_opt.perfmodel.predict import Prediction
from sglang_moe_opt.perfmodel.step import REGIMES
from sglang_moe_opt.perfmodel.validation import Compared
from sglang_moe_opt.pyplot import pyplot
from sglang_moe_opt.report.series import LIGHT, MATPLOTLIB

REGIME_MARKS: Final = dict(zip(REGIMES, ("o", "^", "s", "X"), strict=True))


def write_predictions(predictions: Sequence[Prediction], title: str, path: Path) -> None:
    """Speed-up with interval, the regime as its marker, and tokens per second. Raises NoMatplotlibError, OSError."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    labels = list(dict.fromkeys(one.curve.label for one in predictions))
    for number, label in enumerate(labels):
        mine = [one for one in predictions if one.curve.label == label]
        levels, color = [one.load.concurrency for one in mine], LIGHT[number % len(LIGHT)]
        left.fill_between(
            levels, [one.speedup_low for one in mine], [one.speedup_high for one in mine], color=color, alpha=0.15
        )
        for panel, values in ((left, [one.speedup for one in mine]), (right, [one.tok_s for one in mine])):
            panel.plot(levels, values, color=color, label=label)
            for one, value in zip(mine, values, strict=True):
                panel.plot(one.load.concurrency, value, REGIME_MARKS[one.point.regime], color=color, markersize=5)
    for regime in {one.point.regime for one in predictions}:
        left.plot([], [], REGIME_MARKS[regime], color="#777777", label=f"bound by {regime}")
    left.set_ylabel(f"speed-up over {labels[0]}")
    right.set(ylabel="tok/s", yscale="log")
    _finish(figure, (left, right), [one.load.concurrency for one in predictions], title, path)


def write_comparison(compared: Sequence[Compared], title: str, path: Path) -> None:
    """Measured points on predicted lines: tokens per second, and speed-up. Raises NoMatplotlibError, OSError."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4))
    labels = list(dict.fromkeys(one.label for one in compared))
    for panel, kind in zip(panels, ("tok_s", "speedup"), strict=True):
        for number, label in enumerate(labels):
            mine = [one for one in compared if one.label == label and getattr(one, f"measured_{kind}") is not None]
            if not mine:
                continue
            levels, color = [one.concurrency for one in mine], LIGHT[number % len(LIGHT)]
            panel.plot(levels, [getattr(one, f"predicted_{kind}") for one in mine], color=color, label=label)
            mark = MATPLOTLIB[number % len(MATPLOTLIB)]
            panel.plot(levels, [getattr(one, f"measured_{kind}") for one in mine], mark, color=color, markersize=5)
    panels[0].set(ylabel="total tok/s (lines: predicted)", yscale="log")
    panels[1].set_ylabel(f"speed-up over {labels[0]}")
    _finish(figure, panels, [one.concurrency for one in compared], title, path)


def _finish(figure: Any, panels: Sequence[Any], levels: Sequence[int], title: str, path: Path) -> None:
    ticks = sorted(set(levels))
    shown = [level for level in ticks if level & (level - 1) == 0] or ticks
    for panel in panels:
        panel.set(xscale="log", xlabel="requests at a time")
        panel.set_xticks(shown, [str(level) for level in shown])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save: Callable[[Path], object] = lambda file: figure.savefig(file, dpi=130, format="png")  # noqa: E731
    replace_atomically(path, save)
    pyplot().close(figure)
