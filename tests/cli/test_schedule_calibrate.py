"""`moe-opt schedule calibrate`: thresholds for a budget, from the sample and through an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sglang_moe_opt.cli import schedule_calibrate
from sglang_moe_opt.cli.main import run
from sglang_moe_opt.magnitude.sample import router_weights
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.schedule import PhasedSchedule, SkipSchedule
from tests.magnitude.checkpoint import make_calibrated


@pytest.fixture(scope="module", params=["v2", "v3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calibrated(tmp_path_factory.mktemp("calibrate"), request.param)


def arguments(model: Path, *more: object) -> list[str]:
    shared = ("--model", model, "--statistics", model.parent / "statistics")
    return ["schedule", "calibrate", *map(str, (*shared, *more))]


def calibrated(model: Path, capsys: pytest.CaptureFixture[str], *more: object) -> dict[str, Any]:
    assert run(arguments(model, "--json", *more)) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def means(model: Path, schedule: dict[str, Any]) -> list[float]:
    table = SkipSchedule.from_object(schedule, "schedule").expand(MoEShape.from_path(model))
    found: list[float] = router_weights(model, model.parent / "statistics").mean_na(table).tolist()
    return found


@pytest.mark.parametrize("rule", ["min_ratio", "min_weight", "top_p"])
@pytest.mark.parametrize("scope", ["--one-threshold", "--per-layer"])
def test_the_sample_meets_the_budget(model: Path, capsys: pytest.CaptureFixture[str], rule: str, scope: str) -> None:
    report = calibrated(model, capsys, "--rule", rule, scope, "--mean-na", 2, "--check-tokens", 0)
    found = means(model, report["schedule"])
    assert sum(found) / 2 == pytest.approx(2, abs=0.02)
    assert report["sample_na"] == pytest.approx(found, abs=1e-4)
    assert isinstance(report["schedule"][rule], list) == (scope == "--per-layer")
    if scope == "--per-layer":
        assert found == pytest.approx([2, 2], abs=0.02)
    assert report["realised_mean_na"] is None and len(report["rounds"]) == 1


def test_layers_may_have_their_own_means(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = calibrated(model, capsys, "--layer-na", "2.5,1.5", "--check-tokens", 0, "--rescale", "fit")
    assert means(model, report["schedule"]) == pytest.approx([2.5, 1.5], abs=0.02)
    assert len(report["schedule"]["rescale"]) == 2
    assert report["budget"] == {"mean_na": 2.0, "layer_na": [2.5, 1.5], "min_na": 1}


def test_seeds_draw_other_tokens(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--mean-na", 2, "--check-tokens", 0, "--tokens", 20, "--seed")
    first, again, other = (calibrated(model, capsys, *common, seed) for seed in (1, 1, 2))
    assert first["schedule"] == again["schedule"] != other["schedule"]
    assert first["tokens"] == 20


def test_a_profile_is_written(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("profiles:\n  fast: {na: 1}   # cheap\n")
    report = calibrated(model, capsys, "--mean-na", 2, "--check-tokens", 0, "--profile", "two", "--policy", file)
    wanted = PhasedSchedule.uniform(SkipSchedule.from_object(report["schedule"], "schedule"))
    assert Policy.load(file).profile("two") == wanted
    assert "# cheap" in file.read_text() and "experts on average of 60 sampled tokens" in file.read_text()
    again = arguments(model, "--mean-na", 2.5, "--check-tokens", 0, "--profile", "two", "--policy", file)
    assert run(again) == 2 and "--replace" in capsys.readouterr().err
    assert Policy.load(file).profile("two") == wanted
    assert run([*again, "--replace"]) == 0
    assert Policy.load(file).profile("two") != wanted
    assert (report["profile"], report["policy"]) == ("two", str(file))


def test_the_engines_word_counts(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that keeps a fifth less than the sample: thresholds are lowered until it keeps the budget."""

    @contextmanager
    def measure(*_: Any) -> Iterator[Callable[[SkipSchedule], float]]:
        yield lambda schedule: 0.8 * sum(means(model, schedule.to_object())) / 2

    monkeypatch.setattr(schedule_calibrate, "_measure", measure)
    report = calibrated(model, capsys, "--rule", "min_ratio", "--mean-na", 2, "--corrections", 4)
    assert report["rounds"][0]["realised_mean_na"] == pytest.approx(1.6, abs=0.02)
    assert report["realised_mean_na"] == pytest.approx(2, abs=0.02)
    assert report["sample_mean_na"] == pytest.approx(2.5, abs=0.03)
    assert run(arguments(model, "--mean-na", 2)) == 0
    shown = capsys.readouterr()
    assert "2.000 on the sample, 1.6" in shown.err and "mean na through the engine: 2" in shown.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--mean-na: got None, allowed: either --mean-na or --layer-na"),
        (["--mean-na", "2", "--layer-na", "2,2"], "either --mean-na or --layer-na"),
        (["--mean-na", "4"], "--mean-na: got 4.0, allowed: a number from 1 (--min-na) to 3, the model's top-k"),
        (["--mean-na", "1.5", "--min-na", "2"], "allowed: a number from 2 (--min-na) to 3"),
        (["--layer-na", "2"], "--layer-na: got [2.0], allowed: 2 numbers, one per MoE layer"),
        (["--layer-na", "2,x"], "--layer-na: got '2,x', allowed: numbers separated by commas"),
        (["--layer-na", "2,3.5"], "layer_na[1]: got 3.5, allowed: a number from"),
        (["--mean-na", "2", "--rule", "na"], "--rule: got 'na', allowed: min_ratio, min_weight, top_p"),
        (["--mean-na", "2", "--rescale", "half"], "rescale: got 'half'"),
        (["--mean-na", "2", "--profile", "x"], "--profile: got 'x', allowed: together with --policy FILE"),
        (["--mean-na", "2", "--statistics", "/none"], "/none/statistics.json: No such file"),
    ],
)
def test_bad_input_is_one_line(model: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert run(arguments(model, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
