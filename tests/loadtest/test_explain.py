"""Why the curves of a load test bend: closed forms, known steps, and what is said where something is not known."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image

from loadtest.analysis import Analysis, analyse
from loadtest.explain import with_counted_decode
from loadtest.explanation import Basis
from loadtest.folder import LoadtestFolder
from loadtest.load import Load
from loadtest.outputs import json as json_output
from loadtest.outputs import write_all
from loadtest.outputs.explained_json import explanation
from loadtest.outputs.html import page
from loadtest.outputs.why import columns, lines, of_point
from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.achieved import knee
from sglang_moe_opt.perfmodel.curve import make_curve
from sglang_moe_opt.perfmodel.fit import Requests
from sglang_moe_opt.perfmodel.hardware import PRESETS, Hardware
from sglang_moe_opt.perfmodel.model import ServedModel
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import Fitted
from sglang_moe_opt.perfmodel.roofline import expected_distinct_experts
from sglang_moe_opt.perfmodel.step import Setup, StepTime, step_time
from sglang_moe_opt.perfmodel.work import Batch
from tests.loadtest.synthetic_load import ARMS, BANDWIDTH, CONFIG, INPUT, LOADS, OUTPUT, PEAK, write_load

DOCS = Path(__file__).parents[2] / "docs" / "results" / "loadtest_v2_lite"
MODEL = ServedModel.from_config(CONFIG)
EXPERT_BYTES = 3 * 2048 * 1408 * 2
CONTEXT = INPUT + OUTPUT / 2
EVEN = replace(Fitted.default("cpu").values, routing_skew=0.0)
RANDOM = "deepseek-v2-lite-5l-bfloat16-seed0"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse([write_load(tmp_path_factory.mktemp("load") / "run").root])


def expected(na: float, users: int) -> StepTime:
    """A step as the cost model has it, at the ceilings that the synthetic machine was probed at."""
    distinct = expected_distinct_experts(64, na, users)
    batch = Batch(users, users, CONTEXT, False, distinct)
    return step_time(Setup(MODEL, Hardware("x", "cpu", BANDWIDTH, PEAK, 1e12)), curve_of(na), EVEN, batch)


def curve_of(na: float):  # type: ignore[no-untyped-def]
    return make_curve(MODEL.shape, "", na=na)


def test_generated_tokens_have_the_experts_that_the_count_leaves() -> None:
    """A profile with prompts in full: its mean is the prompts', the server's count knows of the rest."""
    full, requests = curve_of(6), Requests(24, 48)
    found = with_counted_decode(full, (24 * 6 + 47 * 2) / 71, requests)
    assert found.na_decode == pytest.approx((2,) * MODEL.shape.num_moe_layers)
    assert found.na_prefill == full.na_prefill
    for same in (6.0, 5.95):
        assert with_counted_decode(full, same, requests) is full
    assert with_counted_decode(full, 3.0, Requests(24, 1)) is full


def test_every_point_has_its_bytes_operations_and_rates(analysis: Analysis) -> None:
    found = analysis.explanation
    assert [(point.arm, point.load.label) for point in found.points] == [(a, c) for a in ARMS for c in LOADS]
    point = found.point("na=4", Load.parse("c16"))
    assert point is not None
    work, cell = point.achieved.work, analysis.cell("na=4", Load.parse("c16"))
    assert cell is not None
    assert work.expert_bytes == pytest.approx(4 * expected_distinct_experts(64, 4, 16) * EXPERT_BYTES)
    assert work.cache_bytes == pytest.approx(16 * CONTEXT * 5 * 576 * 2)
    assert point.achieved.step_s == pytest.approx(cell.values["itl_p50_ms"].median / 1000)
    assert point.achieved.bandwidth_bytes_s == pytest.approx(BANDWIDTH)
    assert point.achieved.flops_s == pytest.approx(PEAK)
    assert point.achieved.bandwidth_share == pytest.approx(cell.values["bandwidth_share"].median, rel=1e-6)
    assert point.is_counted and point.kept == 64
    base = found.point("full", Load.parse("c16"))
    assert base is not None and base.bytes_ratio is None
    assert point.bytes_ratio == pytest.approx(work.total_bytes / base.achieved.work.total_bytes)
    smaller = found.point("na=4", Load.parse("c4"))
    assert smaller is not None and point.grown is not None and point.before == Load.parse("c4")
    assert point.grown[0] == pytest.approx(point.achieved.step_s / smaller.achieved.step_s)
    assert not found.notes


def test_steps_as_the_model_expects_them_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches on this machine are bound by reading, large ones by arithmetic; the knee lies between."""
    monkeypatch.setattr("tests.loadtest.synthetic_load.step_s", lambda na, users: expected(na, users).total_s)
    levels = (1, 4, 16, 64, 256, 1024)
    labels = [f"c{level}" for level in levels]
    root = write_load(tmp_path / "run", {"full": 6.0, "na=2": 2.0}, labels, rounds=1, noise=0, model=RANDOM).root
    analysis = analyse([root])
    for point in analysis.explanation.points:
        step = expected({"full": 6.0, "na=2": 2.0}[point.arm], int(point.load.value))
        assert point.achieved.rest_s == pytest.approx(0, abs=1e-3 * step.total_s)
        assert point.achieved.bound == step.regime
    regimes = [expected(6.0, level).regime for level in levels]
    assert (regimes[0], regimes[-1]) == ("memory", "compute")
    for arm, na in (("full", 6.0), ("na=2", 2.0)):
        at = knee(levels, [expected(na, level) for level in levels])
        assert at is not None
        assert analysis.explanation.knees[arm] == pytest.approx(at, rel=1e-3)
    told = "\n".join(lines(analysis))
    assert "full is bound by memory at " in told and "Its knee is at " in told
    first, last = (analysis.explanation.point("full", Load.parse(label)) for label in ("c1", "c1024"))
    assert first is not None and last is not None
    assert of_point(first).startswith("reads 6.0 of 64 experts a layer, at ")
    assert "computes at " in of_point(last) and "since 256 the step takes " in of_point(last)


def test_time_that_the_model_does_not_know_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.loadtest.synthetic_load.step_s", lambda na, users: 3 * expected(na, users).total_s)
    analysis = analyse([write_load(tmp_path / "run", rounds=1, noise=0, model=RANDOM).root])
    assert {point.achieved.bound for point in analysis.explanation.points} == {"unexplained"}
    assert "is bound by what the cost model does not know at 1 to 64 concurrent requests" in "\n".join(lines(analysis))
    assert "67 % of the step is not in the cost model" in of_point(analysis.explanation.points[0])


def test_pruned_arms_read_what_their_plan_keeps(tmp_path: Path) -> None:
    plans = {"half": [32] * 4}
    root = write_load(tmp_path / "run", {"full": 6.0, "half": 6.0}, ("c64",), plans=plans, tells=False).root
    analysis = analyse([root], basis=Basis(PRESETS["h100"]))
    full, half = analysis.explanation.points
    # the package's parameters of a GPU have skewed routing: fewer than the even closed form
    assert half.kept == 32 and half.achieved.work.distinct_experts <= 32
    assert full.achieved.work.distinct_experts <= expected_distinct_experts(64, 6, 64)
    assert half.bytes_ratio is not None and half.bytes_ratio < 0.7 and half.flops_ratio == pytest.approx(1, rel=0.001)
    assert half.predicted_speedup is not None and half.predicted_speedup > 1


def test_without_ceilings_there_are_rates_and_how_to_get_the_rest(tmp_path: Path) -> None:
    root = write_load(tmp_path / "run", {"full": 6.0, "na=2": 2.0}, ("c1", "c16"), rounds=1, tells=False).root
    analysis = analyse([root])
    written = write_all(analysis, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["explanation"]
    assert all(p["bytes_s"] > 0 and p["flops_s"] > 0 for p in found["points"])
    assert all(p["bandwidth_share"] is p["bound_by"] is p["predicted_tok_s"] is None for p in found["points"])
    assert not any(p["experts_counted"] for p in found["points"])
    assert len(found["notes"]) == 1
    assert "--calibrate-this-machine" in found["notes"][0] and "--hardware h200 --tp 8" in found["notes"][0]
    assert found["runs"]["run"]["hardware"] is None and found["knees"] == {}
    assert not {"of bandwidth", "bound by", "predicted"} & {name for name, _, _ in columns(analysis)}
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "\\* expected" in text and "| full | c1 |" in text
    assert tmp_path / "out" / "explanation.png" in written


def test_named_hardware_stands_in_place_of_probes(tmp_path: Path) -> None:
    root = write_load(tmp_path / "run").root
    analysis = analyse([root], basis=Basis(PRESETS["h200"], Parallelism(2)))
    point = analysis.explanation.points[0]
    assert (point.achieved.bandwidth_bytes_s, point.achieved.flops_s) == (4.8e12, 989e12)
    assert point.achieved.expected is not None and point.achieved.expected.communication_s > 0
    assert "4,800 GB/s and 989,000 GFLOP/s bf16 (h200, of each of 2 devices)" in lines(analysis)[0]
    with pytest.raises(FieldError, match="--parameters: got 'cpu', allowed: parameters of a gpu"):
        analyse([root], basis=Basis(PRESETS["h200"], parameters=Fitted.default("cpu"))).explanation  # noqa: B018
    with pytest.raises(FieldError, match="--tp: got 3, allowed: a divisor of the model's 16 attention heads"):
        analyse([root], basis=Basis(PRESETS["h200"], Parallelism(3))).explanation  # noqa: B018


def test_a_server_whose_config_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    folder = write_load(tmp_path / "run")
    folder.write_manifest(folder.read_manifest().model_copy(update={"model_config_json": None}))
    analysis = analyse([folder.root])
    names = {path.name for path in write_all(analysis, tmp_path / "out")}
    assert "explanation.png" not in names and "report.html" in names
    only = "the model's config could not be read: bytes, operations and predictions are left out."
    assert lines(analysis) == [only]
    assert only.replace("'", "&#x27;") in page(analysis)
    assert explanation(analysis)["points"] == []


@pytest.mark.parametrize("change", [{"num_attention_heads": None}, {"model_type": "llama", "n_routed_experts": None}])
def test_a_config_of_another_kind_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_load(tmp_path / "run", loads=("c4",))
    folder.write_manifest(folder.read_manifest().model_copy(update={"model_config_json": CONFIG | change}))
    assert len(analyse([folder.root]).explanation.notes) == 1


def test_arms_without_a_fixed_number_of_experts(tmp_path: Path) -> None:
    """A rule by weight keeps what the server counted; of another server nothing is known."""
    folder = write_load(tmp_path / "run", {"full": 6.0, "adaptive": 3.0, "llama.cpp": 6.0}, ("c4",))
    manifest = folder.read_manifest()
    full, adaptive, other = manifest.arms
    arms = [
        full,
        adaptive.model_copy(update={"mean_na": None, "hints": {"adaptive": ({"min_ratio": 0.2}, 1.0)}}),
        other.model_copy(update={"mean_na": None, "hints": {"llama.cpp": (None, 1.0)}, "is_baseline_server": True}),
    ]
    folder.write_manifest(manifest.model_copy(update={"arms": arms}))
    found = analyse([folder.root]).explanation
    assert [point.arm for point in found.points] == ["full", "adaptive"]
    assert found.points[1].flops_ratio == pytest.approx(_flops(3) / _flops(6), rel=1e-3)
    assert found.notes == ("llama.cpp: how many experts a token has is not known; left out.",)


def _flops(na: float) -> float:
    fixed = MODEL.shape.weight_bytes_per_token([0] * 4)["fixed"]
    return fixed + 4 * na * EXPERT_BYTES + CONTEXT * 5 * 2 * 16 * 1088


def test_open_loops_are_left_out(tmp_path: Path) -> None:
    analysis = analyse([write_load(tmp_path / "run", {"full": 6.0}, ("rate2", "rate4")).root])
    assert analysis.explanation.points == ()
    assert "open loops are left out: the batches of their steps are not known." in analysis.explanation.notes
    assert "open loops" in page(analysis)


def test_several_runs_are_explained_each_by_itself(tmp_path: Path) -> None:
    folders = [write_load(tmp_path / name, loads=("c4", "c16")) for name in ("a", "b")]
    folders[1].write_manifest(folders[1].read_manifest().model_copy(update={"model_config_json": None}))
    found = analyse([folder.root for folder in folders]).explanation
    assert {point.arm for point in found.points} == {"a: full", "a: na=4", "a: na=2"}
    assert found.notes == ("b: the model's config could not be read: bytes, operations and predictions are left out.",)


def test_consolidating_arms_read_what_their_own_experts_touch(tmp_path: Path) -> None:
    root = write_load(tmp_path / "run", {"full": 6.0, "own1": 6.0}, model=RANDOM).root
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["arms"][1]["consolidated"] = {"k0": 1}
    (root / "manifest.json").write_text(json.dumps(manifest))
    found = analyse([root]).explanation
    shared, plain = (found.point(arm, Load.parse("c16")) for arm in ("own1", "full"))
    assert shared is not None and plain is not None and shared.predicted_speedup is not None
    assert shared.predicted_speedup > 1.3
    assert shared.achieved.work.flops == pytest.approx(plain.achieved.work.flops)


def test_random_weights_route_evenly_in_predictions(tmp_path: Path) -> None:
    for model, skew in ((RANDOM, 0.0), ("mini-v2", Fitted.default("cpu").values.routing_skew)):
        analysis = analyse([write_load(tmp_path / model, loads=("c4",), model=model).root])
        assert analysis.explanation.bases[model].fitted.values.routing_skew == skew


def test_every_format_has_it(analysis: Analysis, tmp_path: Path) -> None:
    write_all(analysis, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())["explanation"]
    point = next(p for p in found["points"] if (p["arm"], p["load"]) == ("na=2", "c16"))
    assert sum(point["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert point["grown"]["since"] == "c4"
    assert found["runs"][analysis.runs[0].name]["ceilings_probed"] is True
    rows = list(csv.DictReader(StringIO((tmp_path / "summary.csv").read_text())))
    known = {row["metric"]: row for row in rows if (row["arm"], row["load"]) == ("na=2", "c16")}
    assert float(known["expert_bytes"]["value"]) == point["expert_bytes"]
    assert float(known["step_share_memory"]["value"]) == point["shares"]["memory"]
    assert known["flops"]["unit"] == "FLOP"
    text = (tmp_path / "summary.md").read_text()
    assert text.count("\n| na=2 | c") == len(LOADS)
    html = (tmp_path / "report.html").read_text()
    assert "<h2>Why the curves bend</h2>" in html and "Prediction beside measurement" in html
    with Image.open(tmp_path / "explanation.png") as image:
        assert min(image.size) > 600


def test_a_run_of_which_only_the_summary_is_left(tmp_path: Path) -> None:
    root = write_load(tmp_path / "run", goodput_ms={"ttft": 500}).root
    whole = analyse([root])
    json_output.write(whole, root)
    before = json.loads((root / "summary.json").read_text())
    for name in ("points", "requests"):
        shutil.rmtree(root / name)
    rebuilt = analyse([root])
    json_output.write(rebuilt, root)
    after = json.loads((root / "summary.json").read_text())
    assert after["points"] == before["points"]
    assert [p["bound_by"] for p in after["explanation"]["points"]] == [
        p["bound_by"] for p in before["explanation"]["points"]
    ]
    assert set(after["notes"]) - set(before["notes"]) == {
        "run: reported from its summary.json; the points themselves are not in the folder."
    }


def test_the_committed_load_test_is_explained_from_its_summary() -> None:
    analysis = analyse([DOCS])
    found = analysis.explanation
    assert len(found.points) == 51
    assert all(40 < (at or 0) < 100 for at in found.knees.values())
    bounds = {point.load.value: point.achieved.bound for point in found.points if point.arm == "full"}
    assert {bounds[level] for level in (2, 4, 8, 16, 32)} == {"memory"}
    assert {bounds[level] for level in (128, 256, 512, 768)} == {"compute"}
    errors = sorted(abs(point.speedup_error) for point in found.points if point.speedup_error is not None)
    assert len(errors) == 34 and errors[17] < 0.05


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not the summary of a load test"),
        ('{"kind": "evaluation"}', "of kind 'evaluation'"),
        ('{"kind": "loadtest", "runs": [1, 2]}', "compares 2 runs"),
        ('{"kind": "loadtest", "runs": [{"missing": []}], "points": [{"arm": "x"}]}', "not the summary of a load test"),
    ],
)
def test_summaries_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    folder: LoadtestFolder = write_load(tmp_path / "run", loads=("c4",))
    shutil.rmtree(folder.root / "points")
    (folder.root / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        analyse([folder.root])
