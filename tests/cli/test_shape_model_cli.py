"""`moe-opt shape-model`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sglang_moe_opt.cli.shape_model import register

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_MOE_OPT_CACHE", str(tmp_path / "cache"))


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)  # with one command alone typer drops its name
    return CliRunner().invoke(app, ["shape-model", *arguments])


def test_it_prints_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = run("shape:tiny-v2@2", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert (out / "config.json").exists()


def test_json() -> None:
    first, second = (json.loads(run("tiny-v2@2", "--json").stdout) for _ in range(2))
    assert first["path"] == second["path"]
    assert first["layers"] == 2
    assert first["bytes"] == sum(file.stat().st_size for file in Path(first["path"]).glob("*.safetensors"))


@pytest.mark.parametrize(
    "arguments", [["tiny-v9"], ["tiny-v2", "--dtype", "int4"], ["tiny-v2", "--tokenizer", "absent"]]
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
