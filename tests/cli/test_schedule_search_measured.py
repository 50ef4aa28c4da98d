"""`moe-opt schedule search --from-measurements`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from sglang_moe_opt.cli.schedule import register
from sglang_moe_opt.cli.schedule_search_measured import measured_shape, parse_schedule
from sglang_moe_opt.schedule import SkipSchedule
from tests.search.synthetic_scores import LAYERS, TOP_K, grid, measure

SIZES = ("--layers", str(LAYERS), "--top-k", str(TOP_K))


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rules, tables = grid()
    data = measure(tables, rules)
    file = tmp_path_factory.mktemp("measured") / "scores.csv"
    rows = [
        f"{','.join(map(str, rule.schedule or ()))},{score:.2f}" for rule, score in zip(rules, data.scores, strict=True)
    ]
    file.write_text("\n".join(["b,h,e,p,score", *rows]) + "\n")
    return file


def run(csv: Path, *arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["schedule", "search", "--from-measurements", str(csv), *arguments])


def test_json_and_files(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    predict = ["--predict", "6,4,2,5", "--predict", "6-5-5-4-4-3-3-2", "--predict", "4"]
    result = run(csv, *SIZES, "--mean-na", "4", "--top", "2", *predict, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((out / "search.json").read_text())
    assert str(csv.parent) not in result.stdout
    assert report["rows"] == 81
    assert len(report["best_schedules"]) == 2
    assert report["cross_validation"]["mean_absolute_error"] < 0.2
    assert [one["mean_na"] for one in report["predicted"]] == pytest.approx(
        [np.mean([6, 6, 5, 5, 4, 3, 3, 2]), 4, 4], abs=0.13
    )
    for one in report["predicted"]:
        assert one["interval"][0] < one["predicted"] < one["interval"][1]
    assert report["predicted"][2]["measured"] == pytest.approx(report["predicted"][2]["predicted"], abs=0.2)
    with Image.open(out / "search.png") as image:
        assert len(image.convert("RGB").resize((60, 30)).getcolors()) > 5


def test_table(csv: Path) -> None:
    result = run(csv, *SIZES, "--mean-na", "4", "--predict", "6,4,2,5")
    assert result.exit_code == 0, result.output
    assert "81 measurements of score" in result.stdout
    assert "mean na <= 4" in result.stdout
    assert "asked for" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model: got None, allowed: a model, or --layers and --top-k together"),
        (["--model", "mini-v2", "--top-k", "6"], "--model: got 'mini-v2', allowed: alone"),
        (["--model", "mini-v2"], "line 4, p: got 8, allowed: an integer from 1 to 5"),
        (["--layers", "8", "--top-k", "0"], "top-k: got 0"),
        ([*SIZES, "--predict", "6,4"], "predict: got '6,4', allowed: b,h,e,p such as 6,4,2,26"),
        ([*SIZES, "--predict", "6,4,2,x"], "predict: got '6,4,2,x'"),
        ([*SIZES, "--score-column", "f1"], "score column: got 'f1'"),
        ([*SIZES, "--mean-na", "1"], "mean_na: got 1.0"),
    ],
)
def test_bad_input(csv: Path, arguments: list[str], message: str) -> None:
    result = run(csv, *arguments)
    assert isinstance(result.exception, ValueError)  # `moe-opt` prints it as one line and exits with 2
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_exit_status_of_the_command(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sglang_moe_opt.cli.main import run as moe_opt

    assert moe_opt(["schedule", "search", "--from-measurements", str(csv), *SIZES, "--predict", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_shapes() -> None:
    assert len(measured_shape("shape:deepseek-v2-lite@27", None, None).moe_layer_ids) == 26
    assert measured_shape("mini-v3", None, None).top_k == 8


def test_schedules() -> None:
    assert parse_schedule("6,4,2,26") == SkipSchedule(schedule=(6, 4, 2, 26))
    assert parse_schedule("6,4,2,26", "all").layer_base == "all"
    assert parse_schedule("6-4-2-2") == SkipSchedule(layers=(6, 4, 2, 2))
    assert parse_schedule("4") == SkipSchedule(na=4)
