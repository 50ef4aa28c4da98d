"""Markers of plots and legends, told apart by shape so that colour is never needed."""

from __future__ import annotations

CIRCLE = "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z"
UP = "M0,-5.2L5,3.6L-5,3.6Z"
DOWN = "M0,5.2L5,-3.6L-5,-3.6Z"
DIAMOND = "M0,-5.4L5.4,0L0,5.4L-5.4,0Z"
SQUARE = "M-4,-4H4V4H-4Z"
PLUS = "M-1.8,-5.2H1.8V-1.8H5.2V1.8H1.8V5.2H-1.8V1.8H-5.2V-1.8H-1.8Z"
PENTAGON = "M0,-5.2L5,-1.6L3.1,4.2L-3.1,4.2L-5,-1.6Z"
HOURGLASS = "M-4.6,-4.6H4.6L-4.6,4.6H4.6Z"


def key(path: str, kind: str) -> str:
    """A marker by itself, for legends and tables; `kind` are its classes."""
    return f'<svg class="key" viewBox="-7 -7 14 14"><path class="mark {kind}" d="{path}"/></svg>'


def placed(path: str, kind: str, x: float, y: float) -> str:
    """A marker at a point of a plot."""
    return f'<path class="{kind}" transform="translate({x:.1f},{y:.1f})" d="{path}"/>'
