"""`moe-opt schedule weights`: a JSON and a picture of the routers of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from sglang_moe_opt.cli.main import run
from tests.magnitude.checkpoint import make_calibrated

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calibrated(tmp_path_factory.mktemp("weights"), "v3")


@pytest.fixture(autouse=True)
def no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_MOE_OPT_CONFIG", raising=False)


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    shared = ("--model", model, "--statistics", model.parent / "statistics", "--out", out)
    return ["schedule", "weights", *map(str, shared), *more]


def test_before_and_after_a_schedule(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(model, tmp_path, "--schedule", '{"min_ratio": [0.9, 0.5]}', "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "weights.json").read_text())
    assert {**written, "out": str(tmp_path)} == report
    assert (tmp_path / "weights.png").read_bytes().startswith(PNG)
    assert report["schedule"] == {"min_ratio": [0.9, 0.5]}
    assert [one["layer"] for one in report["full"]] == [1, 2]
    full, under = report["full"], report["under_schedule"]
    assert all(one["mean_na"] == 3 for one in full)
    assert 1 < under[0]["mean_na"] < under[1]["mean_na"] < 3, "the second layer's threshold is lower"
    assert report["mean_na"] == pytest.approx((under[0]["mean_na"] + under[1]["mean_na"]) / 2, abs=1e-4)
    assert all(a["mass"] == pytest.approx(b["mass"], rel=1e-3) for a, b in zip(full, under, strict=True))
    assert all(a["first_share"][2] < b["first_share"][2] for a, b in zip(full, under, strict=True))


def test_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(model, tmp_path, "--tokens", "20", "--schedule", "fast")) == 0
    text = capsys.readouterr().out
    assert "router weights, 20 tokens" in text and "mean na 2" in text
    assert "under_schedule" in json.loads((tmp_path / "weights.json").read_text())
    assert run(arguments(model, tmp_path)) == 0
    assert "under_schedule" not in json.loads((tmp_path / "weights.json").read_text())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--schedule", '{"min_ratio": [0.1]}'], "--schedule.min_ratio: got [0.1], allowed: a list of 2 values"),
        (["--schedule", '{"decode": {"na": 2}}'], "allowed: one schedule for both phases"),
        (["--schedule", "slow"], "--schedule: got 'slow', allowed: the profiles full"),
        (["--statistics", "/none"], "/none/statistics.json: No such file"),
        (["--model", "/none"], "--model: got '/none'"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert run(arguments(model, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
