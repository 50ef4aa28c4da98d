"""The pages that runs wrote beside their results say what the results say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from docgen.results import RESULTS, half, load
from loadtest.analysis import analyse
from loadtest.bench_report import write_markdown
from loadtest.outputs import markdown

RUNS = sorted(path.parent.name for path in RESULTS.glob("*/summary.md"))
LOADTESTS = [run for run in RUNS if load(f"{run}/manifest.json").get("kind") == "loadtest"]
EVALUATIONS = [run for run in RUNS if run not in LOADTESTS]


def said(measured: Mapping[str, Any]) -> list[float]:
    """The numbers of a cell: the value, and half of its interval or both ends of its change from full."""
    change = measured["change"]
    return [measured["value"], *([half(measured["interval_95"])] if change is None else change["interval_95"])]


def agrees(cell: str, numbers: list[float]) -> bool:
    """Whether a cell has these numbers, rounded to the digits that it has; JSON was rounded to 1e-5 before."""
    found = re.findall(r"[-+]?\d+\.\d+", cell)
    digits = [len(number.partition(".")[2]) for number in found]
    return len(found) == len(numbers) and all(
        abs(float(text) - number) <= 0.5 * 10.0**-places + 1e-5
        for text, places, number in zip(found, digits, numbers, strict=True)
    )


@pytest.mark.parametrize("run", EVALUATIONS)
def test_summary_page_is_that_of_its_json(run: str) -> None:
    """Label, mean na and every measured cell of every schedule."""
    summary = load(f"{run}/summary.json")
    page = (RESULTS / run / "summary.md").read_text(encoding="utf-8").splitlines()
    heads, _, *lines = (line.strip("| ").split(" | ") for line in page if line.startswith("|"))
    schedules = {row["label"]: row for row in summary["schedules"]}
    assert [line[0] for line in lines] == list(schedules)
    tasks = [name for name in heads if name in {task["name"] for task in summary["tasks"]}]
    for line in lines:
        row, found = schedules[line[0]], dict(zip(heads, line, strict=True))
        bound = "≤ " if row["shape"] == "dynamic" else ""
        assert found["mean na"] == f"{bound}{row['mean_na']:.2f}"
        measured = {"bits/byte": row["bits_per_byte"], "average": row["average"]}
        measured |= {task: row["tasks"][task] for task in tasks}
        for name in found.keys() & measured.keys():
            assert agrees(found[name], said(measured[name])), f"{line[0]}, {name}: {found[name]}"


def test_a_wrong_digit_is_seen() -> None:
    assert agrees("42.1 (-0.9 to +0.5)", [42.086, -0.862, 0.5014])
    assert agrees("1.4662 (+0.21 to +0.26 %)", [1.46617, 0.20523, 0.25511])
    assert not agrees("42.2 (-0.9 to +0.5)", [42.086, -0.862, 0.5014])
    assert not agrees("42.1 (-0.9 to +0.6)", [42.086, -0.862, 0.5014])
    assert not agrees("42.1", [42.086, 1.4])


@pytest.mark.parametrize("run", LOADTESTS)
def test_page_of_a_load_test_is_that_of_its_json(run: str) -> None:
    """The whole page, predictions included."""
    assert markdown.page(analyse([RESULTS / run])) == (RESULTS / run / "summary.md").read_text(encoding="utf-8")


def test_bench_page_is_that_of_its_json(tmp_path: Path) -> None:
    write_markdown(json.loads((RESULTS / "bench/bench.json").read_text()), tmp_path / "bench.md")
    assert (tmp_path / "bench.md").read_text() == (RESULTS / "bench/bench.md").read_text()
