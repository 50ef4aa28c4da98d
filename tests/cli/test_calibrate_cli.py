"""`moe-opt calibrate` refuses what cannot be calibrated in one line, before anything is written or started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.cli.main import run
from tests.cli.small_model import CONFIG


def model(folder: Path, **changed: Any) -> Path:
    """A checkpoint's config, without weights or tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changed))
    return folder


def corpus(file: Path, line: str) -> Path:
    file.write_text(line + "\n")
    return file


@pytest.mark.parametrize(
    ("config", "line", "arguments", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, '{"ids": [1]}', (), "is quantised (fp8)"),
        ({"architectures": ["MixtralForCausalLM"]}, '{"ids": [1]}', (), "is a MixtralForCausalLM, allowed: Deepseek"),
        ({}, '{"ids": [1]}', ("--piece", "1024"), "--piece: got 1024, allowed: below the model's context of 1024"),
        ({}, '{"ids": [64]}', (), "got the token id 64, allowed: 0 to 63"),
        ({}, '{"text": "words"}', (), "the model has no tokenizer, allowed: JSONL with token 'ids'"),
        ({}, '{"words": "words"}', (), "prompts.jsonl: line 1: got {'words': 'words'}"),
        ({}, '{"ids": [1]}', ("--tokens", "0"), "--tokens"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    line: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    folder, file = model(tmp_path / "model", **config), corpus(tmp_path / "prompts.jsonl", line)
    out = tmp_path / "out"
    assert run(["calibrate", "--model", str(folder), "--corpus", str(file), "--out", str(out), *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reference", "--data-dir: no corpora folder in"),
        ("heldout", "No such file or directory; held-out text is made from it"),
        ("none.txt", "none.txt is not there; allowed: a"),
    ],
)
def test_corpora_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    folder = model(tmp_path / "model")
    arguments = ["--corpus", name, "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(["calibrate", "--model", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = model(tmp_path / "model"), corpus(tmp_path / "prompts.jsonl", '{"ids": [1, 2]}')
    assert run(["calibrate", "--model", str(folder), "--corpus", str(file), "--out", str(folder)]) == 2
    assert f"{folder} holds something else" in capsys.readouterr().err
    assert [one.name for one in folder.iterdir()] == ["config.json"]
