"""One schedule against all others of a run: the same numbers as pairing the items by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eval.against import against, main
from eval.kept import FILE
from eval.results import ResultsError
from tests.eval.synthetic_run import write_run


def test_differences_are_paired(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = {row["label"]: row for row in against(run.root, "na=4")}
    assert rows["full"]["loss_percent"] is None
    assert rows["na=4"]["na=4_minus_it_percent"] is None
    nats = {
        name: np.array([item.nats for item in run.read_items(name, "bits_per_byte")])
        for name in ("na=4", "na=2", "full")
    }
    change = rows["na=2"]["na=4_minus_it_percent"]
    assert change["value"] == pytest.approx(100 * (nats["na=4"].sum() / nats["na=2"].sum() - 1), abs=1e-3)
    assert change["interval_95"][0] < change["value"] < change["interval_95"][1] < 0
    assert rows["na=2"]["loss_percent"]["value"] == pytest.approx(
        100 * (nats["na=2"].sum() / nats["full"].sum() - 1), abs=1e-3
    )


def test_command_writes_and_prints(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(run.root), "na=4"])
    assert result.exit_code == 0, result.output
    assert "| na=2 | 2.00 |" in result.stdout
    report = json.loads((run.root / "against-na=4.json").read_text())
    assert [row["label"] for row in report["rows"]][:2] == ["full", "na=4"]
    assert str(tmp_path) not in json.dumps(report)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(ResultsError, match="no schedule 'found', only full, na=4"):
        against(run.root, "found")
    without = write_run(tmp_path / "other", tasks=["boolq"])
    with pytest.raises(ResultsError, match="no task of that run has bits per byte"):
        against(without.root, "na=4")


def test_counted_experts_take_the_place_of_the_most_that_may_be_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run.root / FILE).write_text(json.dumps({"mean_na": {"na=2": 1.87}}))
    rows = {row["label"]: row["mean_na"] for row in against(run.root, "na=4")}
    assert rows["na=2"] == 1.87
    assert rows["na=4"] == 4
