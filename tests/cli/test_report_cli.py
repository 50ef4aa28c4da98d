"""`moe-opt report` from the outside: what it writes, what it refuses, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_moe_opt.cli.main import run as moe_opt
from tests.eval.synthetic_run import write_run
from tests.loadtest.synthetic_load import write_load

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
        ('{"kind": "dance"}', "a run of kind 'dance'; known: evaluation, loadtest"),
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


def test_a_load_test_is_rebuilt_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_load(tmp_path / "a").root
    assert moe_opt(["report", str(folder)]) == 0
    assert (folder / "report.html").exists()
    assert "Largest speed-up: na=2" in " ".join(capsys.readouterr().out.split())


def test_load_tests_are_compared_beside_imported_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_load(tmp_path / name, loads=("c4",)).root) for name in ("a", "b")]
    other = tmp_path / "sglang.jsonl"
    other.write_text(json.dumps({"max_concurrency": 4, "total_throughput": 100.0}) + "\n")
    out = tmp_path / "out"
    assert moe_opt(["report", *folders, "--out", str(out), "--import", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "summary.json").read_text())
    assert found["arms"][0] == "a: full"
    assert found["imported"][0]["source"] == "sglang"


def test_what_cannot_be_reported_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load, run = write_load(tmp_path / "load", loads=("c4",)).root, write_run(tmp_path / "run", tasks=TASKS).root
    assert moe_opt(["report", str(load), str(run), "--out", str(tmp_path / "out")]) == 2
    assert "runs of different kinds" in capsys.readouterr().err
    assert moe_opt(["report", str(run), "--import", "x.jsonl"]) == 2
    assert "--import: only for load tests" in capsys.readouterr().err
    broken = tmp_path / "x.jsonl"
    broken.write_text("{}\n")
    assert moe_opt(["report", str(load), "--import", str(broken)]) == 2
    assert "x.jsonl: line 1: max_concurrency: got None" in capsys.readouterr().err
    assert moe_opt(["report", str(load), "--import", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_a_load_test_is_explained_on_named_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_load(tmp_path / "a", {"full": 6.0, "na=2": 2.0}, ("c4",), rounds=1, tells=False).root
    out = ["--out", str(tmp_path / "out"), "--json"]
    assert moe_opt(["report", str(folder), "--hardware", "h200", "--tp", "8", *out]) == 0
    found = json.loads(capsys.readouterr().out)["explanation"]
    assert found["runs"]["a"] | {"hardware": "h200", "tp": 8, "ceilings_probed": False} == found["runs"]["a"]
    assert found["points"][1]["predicted_speedup"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hardware", "z80"], "--hardware: got 'z80', allowed: a800-pcie"),
        (["--tp", "2"], "--tp: got 2, allowed: it together with --hardware"),
        (["--hardware", "h200", "--tp", "5"], "--tp: got 5, allowed: a divisor of the model's 16 attention heads"),
        (["--parameters", "absent.json"], "--parameters: got 'absent.json', allowed: a file that --fit wrote"),
    ],
)
def test_hardware_that_is_none_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    folder = write_load(tmp_path / "a", {"full": 6.0}, ("c4",), rounds=1).root
    assert moe_opt(["report", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_hardware_is_for_load_tests_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "a", tasks=TASKS).root
    assert moe_opt(["report", str(folder), "--hardware", "h200"]) == 2
    assert "--hardware: only for load tests" in capsys.readouterr().err
