"""`moe-opt prune sensitivity`: one layer pruned at a time, measured on text, read by `prune plan`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from sglang_moe_opt.cli.main import run  # noqa: E402
from sglang_moe_opt.model_shape import MoEShape  # noqa: E402
from sglang_moe_opt.plan import PrunePlan  # noqa: E402
from sglang_moe_opt.pruning import layer_sensitivity  # noqa: E402
from sglang_moe_opt.pruning.student import load_teacher, make_student  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))
from export_models import make_model  # noqa: E402

from tests.pruning.evidence import make_statistics  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(tmp_path_factory.mktemp("sensitivity") / "model")
    make_statistics(MoEShape.from_path(model)).save(model.parent / "statistics")
    rng = np.random.default_rng(1)
    lines = [json.dumps({"ids": rng.integers(0, 64, 64).tolist()}) for _ in range(20)]
    (model.parent / "text.jsonl").write_text("\n".join(lines) + "\n")
    return model


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_sensitivity, "ROW_TOKENS", 64)


def arguments(model: Path, out: Path, *more: object) -> list[str]:
    common = ("sensitivity", "--model", model, "--statistics", model.parent / "statistics", "--criterion", "soft")
    return ["prune", *map(str, (*common, "--corpus", model.parent / "text.jsonl", "--out", out, *more))]


def measured(model: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: object) -> dict[str, Any]:
    assert run([*arguments(model, out, "--keep", "6,4", "--tokens", 1280, *more), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_loss_of_a_layer_is_that_of_the_model_with_this_layer_pruned(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = measured(model, tmp_path / "s.json", capsys)
    shape = MoEShape.from_path(model)
    plan = tmp_path / "plan.json"
    shared = ("--model", str(model), "--statistics", str(model.parent / "statistics"), "--criterion", "soft")
    assert run(["prune", "plan", *shared, "--keep", "4", "--out", str(plan)]) == 0
    capsys.readouterr()
    teacher = load_teacher(model, torch.float32, "cpu")
    lines = (model.parent / "text.jsonl").read_text().splitlines()
    rows = torch.tensor([json.loads(line)["ids"] for line in lines])
    for layer in shape.moe_layer_ids:
        student = make_student(teacher, model, {layer: PrunePlan.load(plan).layers[layer]}, None)
        with torch.no_grad():
            wanted, found = (m(rows, use_cache=False).logits.log_softmax(-1) for m in (teacher, student))
        loss = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
        assert result["layers"][str(layer)]["4"] == pytest.approx(loss, rel=1e-3)
        assert loss > 1e-4, "the plan changes nothing: this test could not fail"
    spread = ["prune", "plan", *shared, "--keep", "6", "--global-budget", "--sensitivity", str(tmp_path / "s.json")]
    assert run([*spread, "--out", str(plan)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plan.json", "s.json"]


def test_an_interrupted_run_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(model, tmp_path / "whole.json", capsys)
    once, calls = layer_sensitivity.divergence, []

    def interrupted(*given: Any) -> float:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return once(*given)

    monkeypatch.setattr(layer_sensitivity, "divergence", interrupted)
    out = tmp_path / "s.json"
    assert run(arguments(model, out, "--keep", "6,4", "--tokens", 1280)) == 130
    assert not out.exists()
    assert run(arguments(model, out, "--keep", "4", "--tokens", 1280)) == 2
    assert "an unfinished run with other arguments" in capsys.readouterr().err
    assert measured(model, out, capsys)["layers"] == whole["layers"]
    assert len(calls) == 1 + 4  # the one that was measured is not measured again


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep", "6,5"], "--keep: got 5, allowed: 4 to 6 in steps of 2"),
        (["--keep", "8"], "--keep: got 8"),
        (["--keep", "few"], "--keep: got 'few', allowed: numbers of experts"),
        (["--keep", "4", "--criterion", "best"], "criterion: got 'best'"),
        (["--keep", "4", "--corpus", "/none"], "--corpus: /none is not there"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert run(arguments(model, tmp_path / "out" / "s.json", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
