"""What every measurement writes down: how it was made, medians with quartiles and every value, atomically."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def provenance(module: str) -> dict[str, Any]:
    """Command line, time, versions and machine."""
    arguments = (json.dumps(a) if " " in a or "{" in a else a for a in sys.argv[1:])
    return {
        "command": " ".join(["python -m", module, *arguments]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("sglang-moe-opt", "sglang", "torch")},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and all values."""
    low, median, high = np.percentile(values, [25, 50, 75]) if len(values) else (np.nan,) * 3
    return {"median": median, "quartiles": [low, high], "all": [round(float(v), 4) for v in values]}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Pair by pair, as the rounds were measured."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write ``result``; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
