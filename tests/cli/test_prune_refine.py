"""`moe-opt prune refine` and `moe-opt prune distill`: plans with weights beside them, or one line and nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from sglang_moe_opt.cli.main import run  # noqa: E402
from sglang_moe_opt.cli.prune_refine import _fit_object  # noqa: E402
from sglang_moe_opt.model_shape import MoEShape  # noqa: E402
from sglang_moe_opt.plan import PrunePlan  # noqa: E402
from sglang_moe_opt.pruning.compensation import LayerFit  # noqa: E402
from sglang_moe_opt.pruning.corpus import Corpus  # noqa: E402
from sglang_moe_opt.pruning.greedy import elimination_scores  # noqa: E402
from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors  # noqa: E402
from sglang_moe_opt.pruning.sample import sampled_inputs  # noqa: E402
from sglang_moe_opt.pruning.statistics import CORPUS_FILE, INPUTS_FILE, input_name  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))
from export_models import UNEQUAL_LAYERS, make_model, make_plan  # noqa: E402

from tests.pruning.evidence import make_statistics  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("refined") / "model")


@pytest.fixture(scope="module")
def plan(model: Path) -> Path:
    return make_plan(model, UNEQUAL_LAYERS, model.parent / "plan.json")


@pytest.fixture(scope="module")
def statistics(model: Path) -> Path:
    """What refinement reads of a calibration: sampled inputs and text."""
    folder = model.parent / "statistics"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file({input_name(i): torch.randn(300, 16, generator=generator) for i in (1, 2)}, folder / INPUTS_FILE)
    rng = np.random.default_rng(0)
    pieces = tuple(rng.integers(0, 64, rng.integers(5, 40)).astype(np.int32) for _ in range(60))
    Corpus(pieces).save(folder / CORPUS_FILE)
    make_statistics(MoEShape.from_path(model)).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(model: Path) -> Path:
    rng = np.random.default_rng(1)
    file = model.parent / "text.jsonl"
    file.write_text("".join(json.dumps({"ids": rng.integers(0, 64, 40).tolist()}) + "\n" for _ in range(30)))
    return file


def refined(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(["prune", *map(str, arguments), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_greedy_plans_by_the_outputs_of_the_sampled_inputs(
    model: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("plan", "--model", model, "--criterion", "greedy", "--keep", 4, "--statistics", statistics, "--out")
    refined(capsys, *common, tmp_path / "greedy.json")
    with Tensors(model) as tensors:
        scores = elimination_scores(MoELayer.read(tensors, 1), sampled_inputs(statistics, 1))
    halves = np.argsort(-scores.reshape(2, 4), axis=1)[:, :2] + [[0], [4]]  # two of each group
    assert PrunePlan.load(tmp_path / "greedy.json").layers[1] == tuple(sorted(halves.flatten().tolist()))


def test_merge_and_compensate(
    model: Path, plan: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("refine", "--model", model, "--plan", plan, "--statistics", statistics, "--out")
    merged = refined(capsys, *common, tmp_path / "merged.json", "--merge", "neurons", "--merge-by", "output")
    both = refined(capsys, *common, tmp_path / "both.json", "--merge", "average", "--compensate")
    again = refined(
        capsys, "refine", "--model", model, "--plan", tmp_path / "merged.json", "--statistics", statistics,
        "--compensate", "--out", tmp_path / "again.json",
    )  # fmt: skip
    assert merged["method"]["merge"] == "neurons"
    fit = {"compensate": "least squares", "ridge": 0.001}
    assert both["method"] == {"criterion": "reap", "merge": "average", "merge_by": "router"} | fit
    assert [layer["layer_id"] for layer in both["layers"]] == [1, 2]
    assert again["method"] == merged["method"] | fit
    assert len({result["digest"] for result in (merged, both, again)}) == 3
    for result in (merged, both, again):
        found = PrunePlan.load(result["plan"])
        assert (found.digest, found.layers) == (result["digest"], UNEQUAL_LAYERS)
        with Tensors(model, Path(result["weights"])):  # names, shapes and dtypes are those of the checkpoint
            pass
    kept = load_file(merged["weights"])
    name = next(name for name in kept if name.endswith("gate_proj.weight"))
    assert torch.equal(load_file(again["weights"])[name], kept[name])


def test_distill(model: Path, plan: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("distill", "--model", model, "--plan", plan, "--corpus", corpus, "--batch-tokens", 80, "--piece", 40)
    result = refined(capsys, *common, "--tokens", 800, "--out", tmp_path / "plans" / "distilled.json", "--lr", 0.01)
    assert result["method"]["distill"] == {"tokens": 800, "lr": 0.01, "corpus": str(corpus)}
    assert list(result["heldout_divergence"]) == ["1", "10"]
    assert PrunePlan.load(result["plan"]).digest == result["digest"]
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == ["distilled.json", "distilled.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refine", "--statistics", "STATISTICS"], "refine: got 'nothing to do', allowed: --merge, --compensate"),
        (["refine", "--statistics", "STATISTICS", "--merge", "sum"], "--merge: got 'sum', allowed: average, neurons"),
        (["refine", "--statistics", "STATISTICS", "--compensate", "--ridge", "0"], "--ridge: got 0.0"),
        (["refine", "--statistics", "/none", "--compensate"], "/none/corpus.safetensors: No such file"),
        (["refine", "--statistics", "/none", "--merge", "average"], "/none/inputs.safetensors"),
        (["distill", "--corpus", "CORPUS", "--batch-tokens", "100"], "batch_tokens: got 100, allowed: multiples"),
        (["distill", "--corpus", "/none"], "--corpus: /none is not there"),
        (["distill", "--corpus", "CORPUS", "--tokens", "30"], "corpus: got 30 tokens, allowed: at least two rows"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    model: Path,
    plan: Path,
    statistics: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"STATISTICS": str(statistics), "CORPUS": str(corpus)}
    given = [places.get(argument, argument) for argument in arguments]
    out = tmp_path / "out" / "plan.json"
    assert run(["prune", *given, "--model", str(model), "--plan", str(plan), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.parent.exists()


def test_a_fit_without_other_text_is_json() -> None:
    fitted = LayerFit(layer_id=1, error_before=0.3, error_after=0.1, heldout_error=float("nan"))
    assert json.loads(json.dumps(_fit_object(fitted), allow_nan=False))["heldout_error"] is None
