"""Shorter imports of SGLang: most of a small server's start, in each of its processes."""

from __future__ import annotations

import gc
import os
import sys
from typing import Final

LEFT_OUT_ENV: Final = "SGLANG_MOE_OPT_NOT_IMPORTED"
"""Packages, separated by commas, that a server does without even where they are installed."""
THRESHOLDS: Final = (100_000, 50, 1000)
"""Of the garbage collector while modules are imported: it would search among what stays."""

_before: tuple[int, int, int] | None = None


def begin() -> None:
    """Leave out packages and collect hardly any garbage until :func:`end`."""
    global _before
    for name in filter(None, os.environ.get(LEFT_OUT_ENV, "").split(",")):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # is to an import as if it were not installed
    _before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)


def end() -> None:
    """Collect garbage as before, but not among what is imported; does nothing where it had not begun.

    Thresholds that somebody else has set since are kept.
    """
    global _before
    if _before is None:
        return
    gc.freeze()
    if gc.get_threshold() == THRESHOLDS:
        gc.set_threshold(*_before)
    _before = None
