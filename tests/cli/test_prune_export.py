"""`moe-opt prune export`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sglang_moe_opt import progress
from sglang_moe_opt.checkpoint_id import fingerprint
from sglang_moe_opt.cli.main import run
from sglang_moe_opt.cli.prune_export import parse_size
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.model_shape import MoEShape, read_config
from sglang_moe_opt.plan import PrunePlan
from sglang_moe_opt.shape_checkpoint import ensure_shape

pytest.importorskip("torch")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGLANG_MOE_OPT_CACHE", str(tmp_path / "cache"))
    return ensure_shape("tiny-v2@2")


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    PrunePlan(model=fingerprint(read_config(model), model), num_experts=64, layers={1: tuple(range(0, 64, 2))}).save(
        file
    )
    return file


def test_it_prints_the_folder(model: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["prune", "export", "--model", str(model), "--plan", str(plan), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert MoEShape.from_path(out).num_experts == 32
    assert run(["prune", "export", "--model", str(model), "--plan", str(plan), "--out", str(out)]) == 2
    assert "holds something already" in capsys.readouterr().err


def test_json(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--model", "shape:tiny-v2@2", "--plan", str(plan), "--out", str(out), "--max-shard-size", "1MB"]
    assert run(["prune", "export", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(out) and report["form"] == "stock" and report["mtp_dropped"] is False
    assert report["shards"] == len(list(out.glob("*.safetensors"))) > 2
    expert_bytes, gate_row = 3 * 128 * 64 * 2, 128 * 2
    assert report["source_bytes"] - report["bytes"] == 32 * (expert_bytes + gate_row)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "nobody/nothing", "--model: nobody/nothing is neither a folder nor a Hugging Face id"),
        ("--model", "/nowhere", "--model: got '/nowhere', allowed: a folder"),
        ("--plan", "/nowhere/plan.json", "/nowhere/plan.json: plan: got"),
        ("--max-shard-size", "5 apples", "--max-shard-size: got '5 apples', allowed: a size such as 5GB"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    option: str,
    value: str,
    message: str,
    model: Path,
    plan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"--model": str(model), "--plan": str(plan), "--out": str(tmp_path / "out")} | {option: value}
    assert run(["prune", "export", *(part for pair in options.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("moe-opt: error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c(
    model: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def at_once(*_: object, **__: object) -> Iterator[Callable[[int], None]]:
        yield lambda _: signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress, "byte_progress", at_once)
    out = tmp_path / "out"
    assert run(["prune", "export", "--model", str(model), "--plan", str(plan), "--out", str(out)]) == 130
    assert capsys.readouterr().err == "moe-opt: interrupted after 0 of 1 shards; the same command goes on\n"
    assert not out.exists() and not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 GiB", 3 << 29), ("500mb", 500 * 10**6), ("7", 7), ("2KiB", 2048)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "GB", "1TB", "1e9", "0.1B", "nan", "5 GB extra"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(FieldError, match="--max-shard-size"):
        parse_size(text)
