"""`moe-opt schedule search` on a model refuses bad input in one line, before anything is written or started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.cli.main import run
from tests.cli import small_model

CONFIG = small_model.CONFIG | {"num_experts_per_tok": 4}
EXPERT = 3 * 16 * 8 * 2  # bytes
LINE = '{"ids": [' + ", ".join(["1"] * 40) + "]}\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "prompts.jsonl").write_text(8 * LINE)
    return folder


def search(model: Path, *arguments: Any) -> int:
    corpus = ["--corpus", str(model.parent / "prompts.jsonl")]
    out = ["--out", str(model.parent / "out")]
    return run(["schedule", "search", "--model", str(model), *corpus, *out, *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "budget: got [], allowed: exactly one of --mean-na, --bytes-per-token, --tok-s, --max-loss"),
        (("--mean-na", 3, "--max-loss", "1%"), "budget: got ['--mean-na', '--max-loss'], allowed: exactly one of"),
        (("--mean-na", 4), "--mean-na: got 4.0, allowed: a number from 1, below the model's top-k 4"),
        (("--mean-na", 0.5), "--mean-na: got 0.5, allowed: a number from 1"),
        (("--bytes-per-token", "many"), "--bytes-per-token: got 'many', allowed: a number of bytes"),
        (("--bytes-per-token", "1G"), f"allowed: bytes from {2 * EXPERT}, below the full model's {8 * EXPERT}"),
        (("--max-loss", "none"), "--max-loss: got 'none', allowed: percent of bits per byte above 0"),
        (("--tok-s", 1), "--hardware: got None, allowed: a machine for --tok-s: a800-pcie"),
        (("--tok-s", 1, "--hardware", "abacus"), "--hardware: got 'abacus', allowed: a800-pcie, h100"),
        (("--tok-s", 1e9, "--hardware", "h100"), "--tok-s: got 1000000000.0, allowed: above the full model's"),
        (("--mean-na", 3, "--rescale", "half"), "--rescale: got 'half', allowed: router, mass, auto, or a number"),
        (("--mean-na", 3, "--rescale", "11"), "--rescale: got '11', allowed: router, mass, auto, or a number"),
        (("--mean-na", 3, "--profile", "p"), "--policy: got None, allowed: both --profile and --policy"),
        (("--mean-na", 3, "--piece", 1024), "--piece: got 1024, allowed: below the model's context of 1024 tokens"),
        (("--mean-na", 3, "--piece", 8, "--tokens", 10), "--tokens"),
        (("--max-loss", "1%", "--statistics", "s"), "--statistics: got 's', allowed: only with --mean-na"),
        (("--mean-na", 3, "--statistics", "nowhere"), "nowhere/statistics.json: No such file or directory"),
        (("--mean-na", 3, "--predict", "4"), "--predict: got \"['4']\", allowed: only with --from-measurements"),
    ],
)
def test_bad_input_is_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[Any, ...], message: str
) -> None:
    assert search(model, *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (model.parent / "out").exists()


def test_a_profile_that_is_there_is_refused_at_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = model.parent / "policy.yaml"
    policy.write_text("profiles: {found: {na: 2}}\n")
    assert search(model, "--mean-na", 3, "--profile", "found", "--policy", policy) == 2
    assert "another name, or --replace" in capsys.readouterr().err
    assert policy.read_text() == "profiles: {found: {na: 2}}\n"


def test_the_policys_floor_counts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = model.parent / "policy.yaml"
    policy.write_text("min_na: 3\n")
    assert search(model, "--mean-na", 2, "--profile", "found", "--policy", policy) == 2
    assert "--mean-na: got 2.0, allowed: a number from 3" in capsys.readouterr().err


def test_too_little_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "prompts.jsonl").write_text(2 * LINE)
    assert search(model, "--mean-na", 3) == 2
    assert "--corpus: got '2 pieces', allowed: at least 4" in capsys.readouterr().err


def test_folders_of_something_else_and_of_another_search(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out"
    out.mkdir()
    (out / "note.txt").write_text("mine")
    assert search(model, "--mean-na", 3) == 2
    assert "holds something else" in capsys.readouterr().err
    (out / "note.txt").unlink()
    (out / "manifest.json").write_text(json.dumps({"job": {"model_name": str(model), "seed": 5}}))
    assert search(model, "--mean-na", 3) == 2
    assert "was begun with" in capsys.readouterr().err


def test_model_and_corpus_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schedule", "search", "--mean-na", "3"]) == 2
    assert "--model: got None, allowed: --model and --corpus, or --from-measurements" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nobody/absent", "no hub/id"])
def test_a_model_that_is_nowhere(
    model: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert search(model, "--mean-na", 3, "--model", name) == 2
    errors = capsys.readouterr().err
    assert f"--model: got '{name}', allowed: a folder, or a Hugging Face id" in errors and errors.count("\n") == 1


def test_a_server_that_is_not_there(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(model, "--mean-na", 3, "--url", "http://127.0.0.1:9") == 1
    assert "cannot be reached" in capsys.readouterr().err
