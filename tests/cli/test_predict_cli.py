"""`moe-opt predict`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sglang_moe_opt.cli.predict import register

TABLE_8 = Path(__file__).parents[2] / "docs" / "results" / "paper_t8_v2lite_skip_throughput.csv"
V3 = ("--model", "deepseek-v3", "--hardware", "h200", "--tp", "8")
LITE = ("--model", "deepseek-v2-lite", "--hardware", "a800-pcie", "--tp", "2")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, list(arguments))


def test_json() -> None:
    result = run(*V3, "--na", "8,6,4,3", "--concurrency", "2,64", "--input", "1024", "--output", "1024", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(p["na"], p["concurrency"]) for p in report["points"][:3]] == [(8, 2), (8, 64), (6, 2)]
    assert {"concurrency", "na", "experts", "tok_s", "speedup", "regime"} <= set(report["points"][0])
    assert [p["speedup"] for p in report["points"][:2]] == [1, 1]
    assert all(p["experts"] == 256 for p in report["points"])
    assert 1 < report["points"][3]["speedup"] < report["points"][7]["speedup"] < 2


def test_experts_and_products() -> None:
    result = run(*LITE, "--experts", "64,32", "--na", "6,2", "--concurrency", "16", "--json")
    points = json.loads(result.stdout)["points"]
    assert [(p["experts"], p["na"]) for p in points] == [(64, 6), (64, 2), (32, 6), (32, 2)]


def test_every_kind_of_curve(tmp_path: Path) -> None:
    plan = {
        "version": 1,
        "model": "0" * 32,
        "num_experts": 64,
        "layers": {str(i): list(range(32)) for i in range(1, 27)},
    }
    (tmp_path / "half.json").write_text(json.dumps(plan))
    result = run(
        *LITE, "--na", "6", "--schedule", "6,4,2,26", "--hint", '{"decode": {"na": 3}}', "--prune-plan",
        str(tmp_path / "half.json"), "--consolidate", "3", "--max-experts", "44", "--concurrency", "16", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout)["points"]
    assert [p["label"] for p in points] == ["na 6", "6,4,2,26", '{"decode": {"na": 3}}', "half", "k0 3, up to 44"]
    assert points[1]["na"] == pytest.approx(4.92, abs=0.01)
    assert points[3]["experts"] == 32
    assert all(p["speedup"] > 1 for p in points[1:])


def test_a_schedule_may_repeat_a_number() -> None:
    result = run(*LITE, "--schedule", "6,4,4,26", "--concurrency", "16", "--json")
    assert result.exit_code == 0, result.output
    baseline, point = json.loads(result.stdout)["points"]
    assert 4 < point["na"] < baseline["na"]


def test_questions_and_files(tmp_path: Path) -> None:
    result = run(
        *LITE, "--na", "6,2", "--concurrency", "2,64", "--want", "1.3", "--at", "16", "--pays", "1.2",
        "--out", str(tmp_path), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["want"]["na"] == 2 and 30 <= report["want"]["experts"] <= 40
    assert report["pays"]["concurrency"]["na 2"][0][0] == 1
    assert json.loads((tmp_path / "prediction.json").read_text()) == report
    assert (tmp_path / "prediction.png").read_bytes().startswith(b"\x89PNG")


def test_table() -> None:
    result = run(*V3, "--na", "8,4", "--concurrency", "2,512", "--want", "1.2", "--at", "32", "--pays", "1.1")
    assert result.exit_code == 0, result.output
    assert "deepseek-v3 on h200, tp 8, 1024 tokens in, 1024 out" in result.stdout
    assert "1.2 times at 32: na 5" in result.stdout
    assert "na 4 is 1.1 times as fast at" in result.stdout
    assert "some wait" in result.stdout


def test_fit_and_use(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    fitted = run(*LITE, "--fit", str(TABLE_8), "--graph-max-batch", "160", "--save", str(file), "--out", str(tmp_path))
    assert fitted.exit_code == 0, fitted.output
    assert "bandwidth_efficiency" in fitted.stdout and "others" in fitted.stdout
    assert (tmp_path / "fit.png").exists()
    with_file = run(*LITE, "--na", "6,2", "--concurrency", "16", "--parameters", str(file), "--json")
    by_default = run(*LITE, "--na", "6,2", "--concurrency", "16", "--json")
    mine, shipped = (json.loads(result.stdout)["points"][1]["speedup"] for result in (with_file, by_default))
    assert mine == pytest.approx(shipped, rel=1e-3)


def test_a_config_json_and_hub_names(tmp_path: Path) -> None:
    from sglang_moe_opt.shapes import ShapeSpec

    (tmp_path / "config.json").write_text(json.dumps(ShapeSpec.parse("deepseek-v3").config()))
    local = run("--model", str(tmp_path), *V3[2:], "--na", "8,4", "--weight-bits", "8", "--concurrency", "8", "--json")
    hub = run("--model", "deepseek-ai/DeepSeek-R1", *V3[2:], "--na", "8,4", "--concurrency", "8", "--json")
    assert json.loads(local.stdout)["points"] != []
    assert json.loads(hub.stdout)["points"][1]["speedup"] > 1


def test_weights_that_do_not_fit_are_noted() -> None:
    result = run("--model", "deepseek-v3", "--hardware", "h100", "--tp", "8", "--na", "8,4", "--concurrency", "8")
    assert result.exit_code == 0
    assert "note: the weights do not fit" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --model: got None"),
        (["--model", "deepseek-v3"], "error: --hardware: got None"),
        (["--model", "gpt", "--hardware", "h100"], "error: --model: got 'gpt', allowed: deepseek-v2-lite"),
        (["--model", "deepseek-v3", "--hardware", "z80"], "error: --hardware: got 'z80', allowed: a800-pcie"),
        ([*V3, "--na", "9"], "error: na: got 9, allowed: a number from 0 to 8, the model's top-k"),
        ([*V3, "--na", "nan"], "error: na: got nan, allowed: a number from 0 to 8"),
        ([*V3, "--na", ""], "error: --na: got '', allowed: numbers separated by commas"),
        ([*V3, "--na", "8,"], "error: --na: got '8,', allowed: numbers separated by commas"),
        ([*V3, "--experts", ""], "error: --experts: got '', allowed: integers separated by commas"),
        ([*V3, "--concurrency", ""], "error: --concurrency: got '', allowed: integers separated by commas"),
        ([*V3, "--input", "-5"], "error: --input: got -5, allowed: an integer from 1"),
        ([*V3[:4], "--tp", "3"], "error: --tp: got 3, allowed: a divisor of the model's 128 attention heads"),
        ([*LITE[:4], "--tp", "32"], "error: --tp: got 32, allowed: a divisor of the model's 16 attention heads"),
        ([*V3, "--na", "8", "--pays", "1.1"], "error: --pays: got 1.1, allowed: it together with curves beside na 8"),
        ([*V3, "--na", "a"], "error: --na: got 'a', allowed: numbers separated by commas"),
        ([*V3, "--experts", "4"], "error: experts: got 4, allowed: an integer from 8 to 256"),
        ([*V3, "--max-experts", "9"], "error: --max-experts: got 9, allowed: only together with --consolidate"),
        (
            [*V3, "--consolidate", "1", "--max-experts", "0"],
            "error: --max-experts: got 0, allowed: an integer from 1 to 256",
        ),
        ([*V3, "--concurrency", "0"], "error: --concurrency: got 0"),
        ([*V3, "--concurrency", "2,x"], "error: --concurrency: got '2,x'"),
        ([*V3, "--input", "0"], "error: --input: got 0"),
        ([*V3, "--ep", "3"], "error: --ep: got 3, allowed: a divisor of --tp, 8"),
        ([*V3, "--want", "1.3"], "error: --want: got 1.3, allowed: a speed-up, together with --at"),
        ([*V3, "--want", "0.5", "--at", "4"], "error: --want: got 0.5"),
        ([*V3, "--count", "words"], "error: --count: got 'words', allowed: total, output"),
        ([*V3, "--schedule", "6,4,2"], "error: schedule.schedule: got [6, 4, 2]"),
        ([*V3, "--hint", '{"min_ratio": 0.2}'], "error: schedule: got"),
        ([*V3, "--hint", '{"na": '], "error: --hint: got '{\"na\": ', allowed: JSON, or a profile's name"),
        ([*V3, "--hint", 9999 * '{"a":'], "error: --hint: got"),
        ([*V3, "--parameters", "absent.json"], "error: --parameters: got 'absent.json'"),
        ([*V3, "--fit", "absent.csv"], "error: --fit: got 'absent.csv'"),
        ([*LITE, "--fit", str(TABLE_8), "--hold", "skew"], "error: --hold: got 'skew'"),
        ([*V3, "--memory-fraction", "2"], "error: --memory-fraction: got 2.0"),
        ([*V3, "--chunk", "0"], "error: --chunk: got 0"),
        ([*V3, "--weight-bits", "5"], "error: --weight-bits: got 5"),
        ([*V3, "--skew", "-1"], "error: parameters.routing_skew: got -1.0"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
