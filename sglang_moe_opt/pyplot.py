"""matplotlib, for PNG files."""

from __future__ import annotations

from typing import Any


class NoMatplotlibError(ValueError):
    """PNG plots are asked for, and matplotlib is not installed."""


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing into files. Raises NoMatplotlibError."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise NoMatplotlibError("PNG plots need matplotlib: pip install 'sglang-moe-opt[plots]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
