"""`moe-opt report` from the outside: what it writes, what it refuses, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_moe_opt.cli.main import run as moe_opt
from tests.eval.synthetic_run import write_run

TASKS = ("rte", "cloze", "bits_per_byte")


def test_one_run_is_rebuilt_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "a", tasks=TASKS).root
    assert moe_opt(["report", str(folder)]) == 0
    assert (folder / "report.html").exists()
    assert "against full" in capsys.readouterr().out


def test_json_is_one_object_and_the_same_as_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "a", tasks=TASKS).root
    assert moe_opt(["report", str(folder), "--json", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not (folder / "summary.json").exists()


def test_several_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / str(i), tasks=TASKS, flips=0.01, seed=i).root) for i in range(2)]
    assert moe_opt(["report", *folders]) == 2
    assert "say with --out DIR" in capsys.readouterr().err
    assert moe_opt(["report", *folders, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schedules"][0]["runs"] == 2


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no manifest.json there"),
        ("{", "manifest.json"),
        ("[]", "not a JSON object"),
        ('{"kind": "dance"}', "a run of kind 'dance'; known: evaluation"),
        ("{}", "created: Field required"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], manifest: str | None, message: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    assert moe_opt(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
