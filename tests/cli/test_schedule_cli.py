"""`moe-opt schedule show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sglang_moe_opt.cli.schedule import register

MODEL = "shape:deepseek-v2-lite@5"


@pytest.fixture(autouse=True)
def no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_MOE_OPT_CONFIG", raising=False)


def run(*arguments: str, model: str = MODEL) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["schedule", "show", "--model", model, *arguments])


def test_json() -> None:
    result = run("--na", "2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    decode = report["phases"]["decode"]
    assert report["profile"] == "custom"
    assert [row["na"] for row in decode["layers"]] == [2, 2, 2, 2]
    assert [row["layer"] for row in decode["layers"]] == [1, 2, 3, 4]
    assert decode["weight_bytes"]["total"] == 542_638_080 + 8 * 17_301_504
    assert decode["share_of_full"] == pytest.approx(
        decode["weight_bytes"]["total"] / report["full_weight_bytes"], abs=1e-4
    )
    assert report["full_weight_bytes"] == 542_638_080 + 24 * 17_301_504


def test_a_reference_model_is_known_by_its_name() -> None:
    assert len(json.loads(run("--na", "2", "--json", model="mini-v2").stdout)["phases"]["decode"]["layers"]) == 5


@pytest.mark.parametrize(
    ("arguments", "na"),
    [
        (["--schedule", "6,4,2,4"], [6, 5, 5, 2]),
        (["--schedule", "6,4,2,5", "--layer-base", "all"], [6, 5, 5, 2]),
        (["--layers", "6,5,4,3"], [6, 5, 4, 3]),
        (["--min-ratio", "0.2", "--min-na", "2", "--rescale", "mass"], [6, 6, 6, 6]),
        (["--top-p", "0.9", "--rescale", "1.1"], [6, 6, 6, 6]),
        (["--min-weight", "0.1", "--rescale", "1"], [6, 6, 6, 6]),
        (["--min-ratio", "0.1,0.2,0.3,0", "--rescale", "mass,mass,1,1"], [6, 6, 6, 6]),
        (["--hint", '{"decode": {"na": 3}}'], [3, 3, 3, 3]),
        (["--hint", "fast"], [2, 2, 2, 2]),
        (["--profile", "fast"], [2, 2, 2, 2]),
        ([], [6, 6, 6, 6]),
    ],
)
def test_every_way_to_name_a_schedule(arguments: list[str], na: list[int]) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert [row["na"] for row in json.loads(result.stdout)["phases"]["decode"]["layers"]] == na


def test_table() -> None:
    result = run("--schedule", "6,4,2,4")
    assert result.exit_code == 0
    assert "first 5" in result.stdout
    assert "mean na 4.5" in result.stdout
    assert "854.1 MB of 957.9 MB" in result.stdout


def test_phases_are_shown_apart() -> None:
    result = run("--hint", '{"decode": {"min_ratio": 0.2, "rescale": "mass"}}')
    assert "digest full" in result.stdout
    assert "weight >= 0.2 x largest, at least 1, mass kept" in result.stdout
    assert "at most 6" in result.stdout


def test_thresholds_of_layers_are_shown() -> None:
    result = run("--min-ratio", "0.1,0.2,0.3,0")
    for rule in ("weight >= 0.1 x largest", "weight >= 0.2 x largest", "weight >= 0.3 x largest", "full"):
        assert rule in result.stdout


def test_a_weight_is_shown() -> None:
    assert "weight >= 0.1, at least 2" in run("--min-weight", "0.1", "--min-na", "2").stdout


def test_policy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "policy.yaml"
    config.write_text("profiles: {mine: {layers: [4, 3, 2, 1]}}")
    by_option = run("--profile", "mine", "--config", str(config), "--json")
    monkeypatch.setenv("SGLANG_MOE_OPT_CONFIG", str(config))
    by_environment = run("--profile", "mine", "--json")
    assert by_option.exit_code == 0
    assert by_option.stdout == by_environment.stdout


def test_a_config_json(tmp_path: Path) -> None:
    from sglang_moe_opt.shapes import ShapeSpec

    (tmp_path / "config.json").write_text(json.dumps(ShapeSpec.parse("tiny-v3").config()))
    assert run("--na", "4", model=str(tmp_path)).exit_code == 0
    assert run("--na", "4", model=str(tmp_path / "config.json")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--na", "0"], "error: schedule.na: got 0, allowed: an integer from 1 to 6"),
        (["--na", "2", "--top-p", "0.5"], "error: schedule: got ['na', 'top_p'], allowed: exactly one of"),
        (["--na", "2", "--profile", "fast"], "error: schedule: got 'several'"),
        (["--schedule", "6,4,2"], "error: schedule.schedule: got [6, 4, 2]"),
        (["--schedule", "a,b"], "error: schedule: got 'a,b', allowed: integers separated by commas"),
        (["--layers", ""], "error: layers: got ''"),
        (["--min-ratio", "0.1,2,0.3,0"], "error: schedule.min_ratio[1]: got 2.0, allowed: a number from 0 to 1"),
        (["--min-ratio", "0.1,0.2"], "error: schedule.min_ratio: got [0.1, 0.2], allowed: a list of 4 values"),
        (["--top-p", "nan"], "error: schedule.top_p: got nan"),
        (["--rescale", "twice", "--na", "2"], "error: schedule.rescale: got 'twice'"),
        (["--hint", "{"], "error: hint: got '{'"),
        (["--profile", "slow"], "error: schedule: got 'slow', allowed: the profiles"),
        (["--config", "absent.yaml"], "error: policy file: got 'absent.yaml'"),
        (["--model", "shape:x"], "error: shape: got 'x'"),
        (["--model", "nowhere"], "error: nowhere: no readable config.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


AUTO = """\
profiles:
  balanced: {na: 4}
  fast: {na: 2}
  auto: {auto: {levels: [full, balanced, fast], min_gain: 1.05, speedup: %s}}
"""
MEASURED = "{balanced: {1: 1.2, 64: 1.11}, fast: {1: 1.5, 64: 1.13}}"


def test_an_auto_profile_shows_its_levels_and_choices(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(AUTO % MEASURED)
    options = ("--config", str(tmp_path / "policy.yaml"), "--profile", "auto")
    report = json.loads(run(*options, "--json").stdout)
    auto = report["auto"]
    assert auto["levels"] == {"full": 6.0, "balanced": 4.0, "fast": 2.0}
    assert {c["tokens"]: c["level"] for c in auto["choices"] if c["tokens"] in (1, 64)} == {1: "fast", 64: "balanced"}
    assert auto["choices"][0]["speedup"] == {"full": 1.0, "balanced": 1.2, "fast": 1.5}
    assert auto["speedup_from"] == "measurement"
    assert [report["phases"][phase]["is_upper_bound"] for phase in ("prefill", "decode")] == [False, True]
    shown = run(*options).stdout
    assert "at most 6" in shown and "balanced (na 4)" in shown and "from a measurement" in shown


def test_an_auto_profile_predicts_from_the_machine(tmp_path: Path) -> None:
    rule = (AUTO % "null").replace("speedup: null", "machine: {read_gb_s: 2000, peak_tflops: 600}")
    (tmp_path / "policy.yaml").write_text(rule)
    result = run("--config", str(tmp_path / "policy.yaml"), "--profile", "auto", "--json")
    auto = json.loads(result.stdout)["auto"]
    assert auto["speedup_from"] == "prediction"
    assert [choice["level"] for choice in auto["choices"]][::9] == ["fast", "full"]


def test_an_auto_profile_that_knows_no_speed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(AUTO % "null")
    result = run("--config", str(tmp_path / "policy.yaml"), "--profile", "auto")
    assert result.exit_code == 2
    assert "profiles.auto.auto.speedup: got None" in result.stderr and result.stderr.count("\n") == 1
