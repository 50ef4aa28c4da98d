"""Speed-ups read from the summary of a load test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.auto.measured import read_curves
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule import SkipSchedule

LEVELS = {"full": SkipSchedule(), "balanced": SkipSchedule(na=4), "fast": SkipSchedule(na=2)}


def summary() -> dict[str, Any]:
    def arm(label: str, hint: object) -> dict[str, Any]:
        return {"label": label, "hints": {label: [hint, 1.0]}, "is_baseline_server": False}

    def point(label: str, load: str, times: list[float]) -> dict[str, Any]:
        return {"arm": label, "load": load, "metrics": {"itl_p50_ms": {"all": times}}}

    return {
        "kind": "loadtest",
        "runs": [{"arms": [arm("full", "full"), arm("na=4", {"na": 4}), arm("fast", "fast")]}],
        "loads": [
            {"label": "c1", "kind": "closed", "value": 1.0},
            {"label": "c8", "kind": "closed", "value": 8.0},
            {"label": "rate4", "kind": "poisson", "value": 4.0},
        ],
        "points": [
            point("full", "c1", [30, 60, 90]),
            point("full", "c8", [80, 80]),
            point("full", "rate4", [1]),
            point("na=4", "c1", [20, 50, 60]),
            point("na=4", "c8", [64]),
            point("fast", "c1", [15, 30, 60]),
            point("fast", "rate4", [1]),
        ],
    }


def write(folder: Path, content: object) -> Path:
    (folder / "summary.json").write_text(json.dumps(content))
    return folder / "summary.json"


def test_ratios_by_round_of_levels_found_by_name_or_rule(tmp_path: Path) -> None:
    full, balanced, fast = read_curves(write(tmp_path, summary()), "speedup", LEVELS)
    assert full == ((1, 1.0), (8, 1.0))
    assert balanced == ((1, 1.5), (8, 1.25))  # 30/20, 60/50, 90/60; another number of rounds at 8
    assert fast == ((1, 2.0),)


def test_curves_are_over_the_first_level(tmp_path: Path) -> None:
    levels = {name: LEVELS[name] for name in ("balanced", "fast")}
    assert read_curves(write(tmp_path, summary()), "speedup", levels)[1] == ((1, 20 / 15),)


def test_the_published_load_test(project_root: Path) -> None:
    full, balanced, fast = read_curves(project_root / "docs/results/loadtest_v2_lite/summary.json", "speedup", LEVELS)
    assert dict(full)[2] == 1.0 and len(fast) == 17
    assert dict(balanced)[16] == pytest.approx(1.20, abs=0.005)
    assert dict(fast)[16] == pytest.approx(1.69, abs=0.005)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([], "TypeError"),
        ({}, "KeyError: 'kind'"),
        ({**summary(), "kind": "eval"}, "kind 'eval'"),
        ({**summary(), "runs": summary()["runs"] * 2}, "of 2 runs"),
        ({**summary(), "runs": [{"arms": summary()["runs"][0]["arms"][:2]}]}, "no profile there is fast"),
        ({**summary(), "points": summary()["points"][:-2]}, "no concurrency at which fast was measured"),
    ],
)
def test_what_is_no_such_summary(tmp_path: Path, content: object, why: str) -> None:
    with pytest.raises(FieldError, match=r"speedup: got .*summary\.json") as caught:
        read_curves(write(tmp_path, content), "speedup", LEVELS)
    assert why in str(caught.value)
