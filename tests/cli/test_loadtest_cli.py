"""`moe-opt loadtest`: what is refused before a server starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_moe_opt.cli import loadtest
from sglang_moe_opt.cli.main import run as moe_opt


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object) -> None:
        raise AssertionError("a server was to be started")

    monkeypatch.setattr(loadtest, "own_servers", start)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A plan for mini-v2."""
    file = tmp_path / "half.json"
    assert (
        moe_opt(["prune", "plan", "--model", "mini-v2", "--criterion", "even", "--keep", "32", "--out", str(file)]) == 0
    )
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://localhost:1", "--prune-plan", "PLAN"], "show those that run with --baseline NAME=URL"),
        (["--model", "mini-v2", "--prune-plan", "PLAN", "--prune-plan", "half=b.json"], "each name once"),
        (["--model", "mini-v2", "--prune-plan", "full=PLAN"], "other than full"),
        (["--model", "mini-v2", "--prune-plan", "PLAN", "--baseline", "half=http://localhost:1"], "each label once"),
        (["--model", "mini-v2", "--prune-plan", "none.json"], "none.json: plan: got"),
        (["--model", "mini-v3", "--prune-plan", "PLAN"], "half.json: model: got"),
    ],
)
def test_a_plan_that_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, half: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.replace("PLAN", str(half)) for argument in arguments]
    capsys.readouterr()
    assert moe_opt(["loadtest", *given, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
