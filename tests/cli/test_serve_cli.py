"""`moe-opt serve`, up to the point where it would start the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sglang_moe_opt.cli import serve
from sglang_moe_opt.cli.main import run
from sglang_moe_opt.shapes import ShapeSpec
from tests.engine.pruning.small_checkpoint import write_checkpoint, write_plan


class Started(BaseException):
    """Stands for the process that would take over."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU machine without our variables, where nothing is started."""
    for name in (serve.CONFIG_ENV, serve.DEFAULT_ENV, serve.PRUNE_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(serve, "has_accelerator", lambda: True)

    def execve(*command: Any) -> None:
        raise Started(*command)

    monkeypatch.setattr(os, "execve", execve)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ShapeSpec.parse("tiny-v3").config()))
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    code = run(["serve", "--dry-run", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    return out.split()


def test_a_gpu_gets_nothing_but_the_policy(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys, "--model", model) == [
        *("sglang", "serve", "--model-path", model, "--moe-opt-config", "builtin", "--enable-metrics")
    ]


def test_a_cpu_is_told_so(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "has_accelerator", lambda: False)
    command = dry_run(capsys, "--model", model, "--attention-backend", "triton")
    assert command[0] == "TORCHDYNAMO_DISABLE=1"
    assert command[-2:] == ["--attention-backend", "triton"]
    assert "torch_native" not in command and "cpu" in command


def test_other_options_go_to_sglang_as_they_are(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = dry_run(capsys, "--port", "31000", "--model", model, "--default", "fast", "--enable-mixed-chunk")
    assert command[-5:] == ["--port", "31000", "--enable-mixed-chunk", "--moe-skip-default", "fast"]


def test_the_policy_is_a_whole_path(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.yaml").write_text("profiles: {mine: {na: 2}}")
    monkeypatch.chdir(tmp_path)
    named = dry_run(capsys, "--model", model, "--config", "policy.yaml")
    assert named[named.index("--moe-opt-config") + 1] == str(tmp_path / "policy.yaml")
    monkeypatch.setenv(serve.CONFIG_ENV, "policy.yaml")
    assert dry_run(capsys, "--model", model) == named


def test_the_mini_model_is_the_default(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "reference_model", lambda name: Path(model))
    assert model in dry_run(capsys)


def test_the_server_takes_over_this_process(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "has_accelerator", lambda: False)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    monkeypatch.setenv("KEPT", "yes")
    with pytest.raises(Started) as caught:
        run(["serve", "--model", model, "--port", "31000"])
    executable, command, environment = caught.value.args
    assert executable == command[0] == sys.executable
    assert command[1:3] == ["-m", "sglang_moe_opt.cli.sglang_serve"]
    assert command[3:5] == ["--model-path", model] and command[-2:] == ["--port", "31000"]
    assert environment["TORCHDYNAMO_DISABLE"] == "0"  # the user's own
    assert environment["KEPT"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--default", "slow"], "default: got 'slow', allowed: the profiles full"),
        (["--config", "absent.yaml"], "policy file: got 'absent.yaml'"),
        (["--config", "wrong.yaml"], "profiles.a.layers: got [1], allowed: a list of 2 integers"),
        (["--model", "./absent"], "--model: got './absent', allowed: a folder"),
        (["--model", "shape:absent"], "shape: got 'absent'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "wrong.yaml").write_text("profiles: {a: {layers: [1]}}")
    monkeypatch.chdir(tmp_path)
    assert run(["serve", "--dry-run", "--model", model, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"moe-opt: error: {message}") and err.count("\n") == 1


def test_a_plan_is_checked_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "small")
    file = write_plan(tmp_path / "plan.json", {1: (0, 1, 2, 3, 4, 5, 6, 7), 2: (0, 1, 2, 3, 4, 5, 6, 7)}, model).file
    monkeypatch.chdir(tmp_path)
    for option in ("--prune-plan", "--moe-prune-plan"):
        command = dry_run(capsys, "--model", str(model), option, "plan.json")
        assert command[command.index("--moe-prune-plan") + 1] == str(file)
    (tmp_path / "policy.yaml").write_text("prune_plan: plan.json")
    assert "--moe-prune-plan" not in dry_run(capsys, "--model", str(model), "--config", "policy.yaml")
    (model / "model-1.safetensors").unlink()
    for options in (["--prune-plan", "plan.json"], ["--config", "policy.yaml"]):
        assert run(["serve", "--dry-run", "--model", str(model), *options]) == 2
        err = capsys.readouterr().err
        assert err.startswith("moe-opt: error: ") and "fingerprint" in err and err.count("\n") == 1


def test_torch_is_asked_for_a_gpu_only_where_there_is_a_driver(model: str) -> None:
    code = (
        "import ctypes, sys; from sglang_moe_opt.cli.main import run\n"
        "real = ctypes.CDLL\n"
        "def load(name, *more, **options):\n"
        "    if name == 'libcuda.so.1' and not {driver}: raise OSError(name)\n"
        "    return real(None if name == 'libcuda.so.1' else name, *more, **options)\n"
        "ctypes.CDLL = load\n"
        "sys.exit(run(['serve', '--dry-run', '--model', sys.argv[1]]) or 10 + ('torch' in sys.modules))"
    )
    for driver in (False, True):
        command = [sys.executable, "-c", code.format(driver=driver), model]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 10 + driver, done.stderr
