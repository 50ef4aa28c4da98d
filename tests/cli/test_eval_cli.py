"""`moe-opt eval` and `make reproduce`: what they ask for, and faults as one line each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from eval import reproduce
from sglang_moe_opt.cli import eval as command
from sglang_moe_opt.cli.main import run
from tests.eval.fake_server import fake_server
from tests.eval.small_data import CHECKPOINT, rte_rows, small_data, weightless_model, write_odd_plan


@pytest.fixture(autouse=True)
def _no_data_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(command.DATA_ENV, raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weightless_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_data(tmp_path / "data")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_run_prints_its_summary(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    with fake_server(model) as server:
        options = ["--url", server.url, "--data-dir", str(data), "--tasks", "rte", "--limit", "20", "--out", out]
        assert run(["eval", *options, "--profiles", "fast", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert [row["label"] for row in summary["schedules"]] == ["full", "fast"]
        assert (tmp_path / "run" / "summary.json").exists()
        assert run(["eval", *options, "--profiles", "fast"]) == 1
        assert "holds a run already" in one_line(capsys)
        assert run(["eval", *options, "--profiles", "fast", "--resume"]) == 0


def test_a_refused_server_is_one_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(model, "ignores_hint") as server:
        options = ["--url", server.url, "--data-dir", str(data), "--tasks", "rte", "--out", str(tmp_path / "run")]
        assert run(["eval", *options]) == 1
    assert "ignores the hint" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line_before_any_server_is_asked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", "http://127.0.0.1:9"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for options, code, complaint in (
        ([], 2, "--url or --model"),
        ([*url, "--tasks", "hellaswag"], 2, "--tasks: got 'hellaswag'"),
        ([*url, "--profiles", "na=x"], 2, "--profiles: got 'na=x'"),
        ([*url, "--grid", "nothing"], 2, "--grid: got 'nothing'"),
        ([*url, "--data-dir", str(empty)], 2, f"--data-dir: {empty}: is empty"),
        ([*url, "--resume"], 2, "--resume: say with --out"),
        ([*url, "--resume", "--out", str(empty)], 1, "no manifest.json"),
        ([*url, "--prune-plan", "a.json"], 2, "--prune-plan: needs --model"),
        (["--url", "localhost:9"], 2, "--url: got 'localhost:9'"),
        (url, 1, "cannot be reached"),
    ):
        assert run(["eval", *options]) == code
        assert complaint in one_line(capsys)


def test_a_bad_plan_is_one_line_before_any_server_starts(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (CHECKPOINT / "model.safetensors").exists():
        pytest.skip(f"no trained checkpoint at {CHECKPOINT}")
    monkeypatch.setattr(command, "own_server", lambda *_: pytest.fail("a server was started"))
    good = str(write_odd_plan(CHECKPOINT, tmp_path / "good.json"))
    other = tmp_path / "other.json"
    other.write_text(Path(good).read_text().replace('"num_experts": 64', '"num_experts": 128'))
    for plans, complaint in (
        ([str(tmp_path / "none.json")], "none.json"),
        ([good, str(other)], "other.json: num_experts: got 128, allowed: 64"),
        ([good, good], "--prune-plan: got 'good', allowed: each name once"),
        ([f"full={good}"], "--prune-plan: got 'full'"),
        ([f"fast={good}"], "schedules: got 'fast', allowed: each label once"),
    ):
        options = [part for plan in plans for part in ("--prune-plan", plan)]
        options += ["--model", str(CHECKPOINT), "--profiles", "full,fast", "--data-dir", str(data), "--tasks", "rte"]
        assert run(["eval", *options, "--out", str(tmp_path / "run")]) == 2
        assert complaint in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_each_plan_is_served_under_its_name(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_odd_plan(model, tmp_path / "odd.json")
    started: list[tuple[str, Path] | None] = []

    @contextmanager
    def own_server(
        path: str, config: Path | None, extra: list[str], console: object, named: tuple[str, Path] | None
    ) -> Iterator[str]:
        started.append(named)
        with fake_server(model, plan=named and named[1]) as server:
            yield server.url

    monkeypatch.setattr(command, "own_server", own_server)
    monkeypatch.setattr("eval.plans.check_plan", lambda *_: None)  # it would miss the weights
    options = ["--model", str(model), "--prune-plan", f"half={plan}", "--profiles", "fast", "--data-dir", str(data)]
    options += ["--tasks", "rte", "--limit", "20", "--out", str(tmp_path / "run"), "--json"]
    assert run(["eval", *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in summary["schedules"]] == ["full", "fast", "half", "half/fast"]
    assert started == [None, ("half", plan)]
    assert run(["eval", *options, "--resume"]) == 0
    assert len(started) == 2


def test_a_truncated_line_is_one_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data / "rte" / "validation.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rte_rows())
    file.write_text(text[:-20])
    with fake_server(model) as server:
        assert run(["eval", "--url", server.url, "--data-dir", str(data), "--tasks", "rte"]) == 2
    assert f"{file}: line 277: not JSON" in one_line(capsys)


def test_full_is_always_among_the_schedules() -> None:
    assert [one.label for one in command._schedules(None, None)] == ["full"]
    assert [one.label for one in command._schedules("fast,na=3", None)] == ["full", "fast", "na=3"]
    assert [one.label for one in command._schedules("fast,full", None)] == ["fast", "full"]
    grid = [one.label for one in command._schedules("na1", "mini_v2")]
    assert grid.count("na1") == grid.count("full") == 1


def test_the_plan_of_a_study_is_shown(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(reproduce, "run", lambda arguments: asked.append(arguments) or 0)
    reproduce.main(str(model), None, None, None, None, plan_only=True)
    shown = capsys.readouterr().out
    assert "12 that differ, from grid mini_v2" in shown
    assert "200 of each task at most" in shown
    assert f"command    moe-opt eval --model {model} --grid mini_v2" in shown
    assert not asked


def test_a_model_without_a_study_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sglang_moe_opt.shapes import ShapeSpec

    (tmp_path / "config.json").write_text(json.dumps(ShapeSpec.parse("tiny-v3").config()))
    with pytest.raises(typer.Exit):
        reproduce.main(str(tmp_path), None, None, None, None, plan_only=True)
    assert "allowed: 6/26 (paper_v2_lite)" in one_line(capsys)
