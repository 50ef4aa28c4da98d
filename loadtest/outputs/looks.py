"""How the curves of an analysis are told apart: a colour and a marker for each arm and each imported source."""

from __future__ import annotations

from loadtest.analysis import Analysis
from sglang_moe_opt.report.series import DARK, LIGHT, MATPLOTLIB, SHAPES, color, kind, path, shape, style

__all__ = ["DARK", "LIGHT", "MATPLOTLIB", "SHAPES", "color", "kind", "names", "path", "shape", "style"]


def names(analysis: Analysis) -> list[str]:
    """All curves in the order of their numbers: arms, then imported sources."""
    return [*analysis.arms, *dict.fromkeys(point.source for point in analysis.imported)]
