"""Plan files: what they say, what they are refused for, and the rules of the router's groups."""

from __future__ import annotations

import json
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sglang_moe_opt.model_shape import MoEShape, Scoring
from sglang_moe_opt.plan import PlanError, PrunePlan, SidecarFile

MODEL, OTHER = "0123456789abcdef" * 2, "f" * 32
SHAPE = MoEShape(3, (1, 2), 2, 8, 1, False, "softmax")
LAYERS = {1: (0, 3, 7), 2: (1, 2)}


def plan(**changes: Any) -> PrunePlan:
    return PrunePlan(**({"model": MODEL, "name": "tiny", "num_experts": 8, "layers": LAYERS} | changes))


def content(**changes: Any) -> dict[str, Any]:
    """A plan as its file has it."""
    return {"model": MODEL, "num_experts": 8, "layers": {"1": [0, 3, 7], "2": [1, 2]}} | changes


def write(folder: Path, value: object) -> Path:
    file = folder / "plan.json"
    file.write_text(json.dumps(value))
    return file


@given(
    st.dictionaries(st.integers(0, 80), st.sets(st.integers(0, 63), min_size=1), min_size=1),
    st.dictionaries(st.text(), st.text() | st.lists(st.integers()), max_size=3),
)
def test_a_file_gives_back_its_plan(
    tmp_path_factory: pytest.TempPathFactory, layers: dict[int, set[int]], method: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "round_trip.json"
    given_plan = plan(
        num_experts=64, layers={layer: tuple(sorted(ids)) for layer, ids in layers.items()}, method=method
    )
    given_plan.save(file)
    loaded = PrunePlan.load(file)
    assert loaded == given_plan
    assert loaded.digest == given_plan.digest
    assert list(loaded.layers) == sorted(layers)


def test_a_file_is_written_for_people_too(tmp_path: Path) -> None:
    plan(method={"text": "[ 1, 2 ]"}).save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert '    "1": [0, 3, 7],' in lines
    assert '    "text": "[ 1, 2 ]"' in lines


def test_what_it_keeps() -> None:
    assert plan().kept(1) == (0, 3, 7)
    assert not plan().is_uniform
    assert plan(layers={1: (0, 3), 2: (1, 2)}).is_uniform
    with pytest.raises(PlanError, match="layer: got 3, allowed: the layers 1-2"):
        plan().kept(3)


def test_the_digest_is_over_what_the_plan_does() -> None:
    same = [plan(), plan(name="other", method={"criterion": "x"}), plan(layers=dict(reversed(LAYERS.items())))]
    sidecars = [SidecarFile(file=name, sha256=digit * 64) for name, digit in (("a", "0"), ("b", "0"), ("a", "1"))]
    with_weights = [plan(weights=sidecar) for sidecar in sidecars]
    different = [plan(model=OTHER), plan(layers={1: (0, 3, 7), 2: (1, 3)}), plan(layers={1: (0, 3, 7), 3: (1, 2)})]
    assert len({p.digest for p in same}) == 1
    assert with_weights[0].digest == with_weights[1].digest
    digests = {p.digest for p in (*same, *with_weights, *different)}
    assert len(digests) == 6
    assert all(len(digest) == 32 for digest in digests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version: got 2, allowed: 1"),
        ({"model": "tiny"}, "model: got 'tiny', allowed: "),
        ({"num_experts": "8"}, "num_experts: got '8', allowed: a valid integer"),
        ({"kept": []}, "kept: got [], allowed: only the keys version, model,"),
        ({"layers": {}}, "layers: got {}, allowed: an object of layer id: kept expert ids"),
        ({"layers": [[0]]}, "layers: got [[0]], allowed: an object"),
        ({"layers": {"01": [0]}}, "layers: got '01', allowed: layer ids such as 3"),
        ({"layers": {"-1": [0]}}, "layers: got '-1', allowed: layer ids such as 3"),
        ({"layers": {"1": []}}, "layers.1: got [], allowed: at least one kept expert"),
        ({"layers": {"1": 3}}, "layers.1: got 3, allowed: a list of expert ids"),
        ({"layers": {"1": [3, 3]}}, "layers.1: got 3, allowed: every expert once"),
        ({"layers": {"1": [3, 2]}}, "layers.1: got '2 after 3', allowed: ascending ids"),
        ({"layers": {"1": [0, 8]}}, "layers.1: got 8, allowed: expert ids 0 to 7"),
        ({"layers": {"1": [-1, 0]}}, "layers.1: got -1, allowed: expert ids from 0"),
        ({"layers": {"1": [True]}}, "layers.1: got True, allowed: expert ids from 0"),
        ({"layers": {"1": [1.0]}}, "layers.1: got 1.0, allowed: expert ids from 0"),
        ({"weights": {"file": "a"}}, "weights.sha256: got 'nothing', allowed: a value"),
        ({"weights": {"file": "a", "sha256": "0"}}, "weights.sha256: got '0', allowed: "),
        ({"weights": {"file": "../a", "sha256": "0" * 64}}, "weights.file: got '../a', allowed: a path below"),
        ({"weights": {"file": "/a", "sha256": "0" * 64}}, "weights.file: got '/a', allowed: a path below"),
        ({"weights": {"file": "", "sha256": "0" * 64}}, "weights.file: got '', allowed: a path below"),
        (
            {"weights": {"file": "a", "sha256": "0" * 64, "b": 1}},
            "weights.b: got 1, allowed: only the keys file",
        ),
        ({"method": "reap"}, "method: got 'reap', allowed: a valid dictionary"),
    ],
)
def test_what_a_file_is_refused_for(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = write(tmp_path, content(**changes))
    with pytest.raises(PlanError) as caught:
        PrunePlan.load(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("key", ["model", "num_experts", "layers"])
def test_what_a_file_must_say(tmp_path: Path, key: str) -> None:
    value = content()
    del value[key]
    with pytest.raises(PlanError, match=f"{key}: got 'nothing', allowed: a value"):
        PrunePlan.load(write(tmp_path, value))


def test_every_truncation_is_named(tmp_path: Path) -> None:
    file, cut = tmp_path / "plan.json", tmp_path / "cut.json"
    plan(method={"criterion": "reap"}).save(file)
    text = file.read_text().rstrip()
    for length in range(len(text)):
        cut.write_text(text[:length])
        with pytest.raises(PlanError, match=r"cut\.json: plan: got .*, allowed: a whole JSON file"):
            PrunePlan.load(cut)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    missing = tmp_path / ("long" * 30) / "plan.json"
    with pytest.raises(PlanError) as caught:
        PrunePlan.load(missing)
    assert str(caught.value) == f"{missing}: plan: got 'No such file or directory', allowed: a readable file"
    with pytest.raises(PlanError, match="allowed: a readable file"):
        PrunePlan.load(tmp_path)
    with pytest.raises(PlanError, match="got 'layers', allowed: every key once"):
        (tmp_path / "plan.json").write_text('{"layers": {"1": [0]}, "layers": {"1": [1]}}')
        PrunePlan.load(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="allowed: an object with the keys version, model"):
        PrunePlan.load(write(tmp_path, []))


def test_the_sidecar_must_be_the_one_the_plan_was_made_with(tmp_path: Path) -> None:
    weights, file = tmp_path / "plan.safetensors", tmp_path / "plan.json"
    weights.write_bytes(b"tensors")
    made = plan(weights=SidecarFile.of(weights))
    made.save(file)
    assert PrunePlan.load(file) == made
    assert made.weights_path(file) == weights
    assert plan().weights_path(file) is None
    weights.write_bytes(b"tensorz")
    with pytest.raises(PlanError, match=r"plan\.json: weights\.sha256: got .*, the hash of .*plan\.safetensors"):
        PrunePlan.load(file)
    assert PrunePlan.load(file, verify=False) == made
    weights.unlink()
    with pytest.raises(PlanError, match=r"weights\.file: got 'plan\.safetensors', allowed: an existing file; /.*"):
        PrunePlan.load(file)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        plan().name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": OTHER}, f"model: got '{OTHER}', allowed: {MODEL}, the fingerprint .* made for tiny"),
        ({"num_experts": 16}, "num_experts: got 16, allowed: 8"),
        ({"layers": {1: (0, 1)}}, r"layers: got 'no layer 2', allowed: every MoE layer \(1-2\)"),
        ({"layers": {0: (0, 1), 1: (0, 1), 2: (0, 1)}}, "layers: got 'layer 0', allowed: MoE layers only"),
        ({"layers": {1: (0, 1), 2: (1,)}}, "layers.2: got '1 kept', allowed: at least top-k, 2"),
    ],
)
def test_a_plan_is_held_against_the_model(changes: dict[str, Any], message: str) -> None:
    plan().check(SHAPE, MODEL)
    with pytest.raises(PlanError, match=message):
        plan(**changes).check(SHAPE, MODEL)


def test_a_fingerprint_that_is_not_known_is_not_compared() -> None:
    plan(model=OTHER).check(SHAPE, None)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_every_choice_of_groups_holds_top_k(scoring: Scoring) -> None:
    """All 255 sets of 8 experts, in 4 groups of which the router keeps 2, against the rules as they are said."""
    shape = MoEShape(1, (0,), 3, 8, 0, True, scoring, n_group=4, topk_group=2)
    least = {"softmax": 1, "sigmoid": 2}[scoring]
    refused = 0
    for size in range(1, 9):
        for kept in combinations(range(8), size):
            counts = [sum(expert // 2 == group for expert in kept) for group in range(4)]
            runs = min(counts) >= least and all(a + b >= 3 for a, b in combinations(counts, 2))
            made = plan(layers={0: kept})
            assert made.gate_mode(shape) == ("shrink" if len(set(counts)) == 1 else "mask")
            try:
                made.check(shape, MODEL)
                assert runs, kept
            except PlanError as error:
                assert not runs, error
                refused += 1
    assert refused == {"softmax": 255 - 9, "sigmoid": 254}[scoring]


def test_groups_may_shrink_by_another_number_in_every_layer() -> None:
    shape = MoEShape(3, (1, 2), 2, 8, 0, False, "softmax", n_group=2, topk_group=1)
    assert plan(layers={1: (0, 1, 4, 7), 2: (0, 1, 2, 4, 5, 6)}).gate_mode(shape) == "shrink"
    assert plan(layers={1: (0, 1, 4, 7), 2: (0, 1, 2, 5)}).gate_mode(shape) == "mask"
    assert plan().gate_mode(SHAPE) == "shrink"
