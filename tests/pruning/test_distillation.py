"""Distillation: the student is the pruned model, training brings it nearer to the full one and can be interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_models import MODELS, make_model

from sglang_moe_opt.fields import FieldError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from sglang_moe_opt.pruning.decoder import Decoder, Pieces  # noqa: E402 (needs torch)
from sglang_moe_opt.pruning.distillation import Recipe, Report, batch_rows, distill, split_rows  # noqa: E402
from sglang_moe_opt.pruning.moe_layer import MoELayer, Tensors  # noqa: E402
from sglang_moe_opt.pruning.student import load_teacher, make_student  # noqa: E402

KEPT = {1: (0, 1, 4, 5, 7), 2: (0, 2, 5, 6)}
"""Another number in each layer, and for the model with two groups another one in each group."""
RECIPE = Recipe(tokens=640, batch_tokens=64, row_tokens=16, micro_rows=3, lr=3e-3)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param) / "model", MODELS[request.param])


@pytest.fixture(scope="module")
def text() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, rng.integers(5, 40)).astype(np.int32) for _ in range(40)]


def test_the_student_is_the_pruned_model(model: Path, text: list[np.ndarray]) -> None:
    teacher = load_teacher(model, torch.float32, "cpu")
    student = make_student(teacher, model, KEPT, None)
    with Tensors(model) as tensors, torch.no_grad():
        decoder, packed = Decoder(tensors), Pieces.of(text[:4])
        x = decoder.embed(packed)
        for layer_id in range(tensors.shape.num_layers):
            x = x + decoder.attention(layer_id, packed)(x)
            is_moe = layer_id in KEPT
            mlp = MoELayer.read(tensors, layer_id).keeping(KEPT[layer_id]) if is_moe else decoder.dense(layer_id)
            x = x + mlp(decoder.mlp_input(layer_id)(x))
        wanted = decoder.norm("model.norm")(x)
        rows = [torch.from_numpy(piece.astype(np.int64))[None] for piece in text[:4]]
        found = torch.cat([student.model(row, use_cache=False).last_hidden_state[0] for row in rows])
    assert torch.allclose(found, wanted, atol=1e-4)
    shared = {id(parameter) for parameter in teacher.parameters()} & {id(p) for p in student.parameters()}
    assert len(shared) == sum(1 for name, _ in student.named_parameters() if ".mlp." not in name or "layers.0" in name)


def test_training_brings_the_pruned_model_nearer(model: Path, text: list[np.ndarray]) -> None:
    reports: list[Report] = []
    tensors = distill(model, KEPT, text, replace(RECIPE, tokens=2560, lr=1e-2), save_every=20, report=reports.append)
    assert [report.step for report in reports] == list(range(1, 41))
    measured = [report.heldout for report in reports if report.heldout is not None]
    assert len(measured) == 3
    assert measured[-1] < 0.9 * measured[0]
    with Tensors(model) as own:
        for name, tensor in tensors.items():
            assert tensor.dtype == own.dtype(name)
            assert tensor.shape == own[name].shape
        for layer_id, kept in KEPT.items():
            stem = f"model.layers.{layer_id}.mlp."
            gone = [e for e in range(8) if e not in kept]
            gate = tensors[stem + "gate.weight"]
            assert torch.equal(gate[gone], own[stem + "gate.weight"][gone])
            assert not torch.equal(gate, own[stem + "gate.weight"])
    owners = {name.split(".mlp.")[1].removesuffix(".weight") for name in tensors if ".layers.1." in name}
    projections = {"gate_proj", "up_proj", "down_proj"}
    experts = {f"experts.{e}.{p}" for e in KEPT[1] for p in projections}
    assert owners == experts | {f"shared_experts.{p}" for p in projections} | {"gate"}


def test_a_model_that_keeps_all_has_nothing_to_learn(model: Path, text: list[np.ndarray]) -> None:
    reports: list[Report] = []
    everything = {1: tuple(range(8)), 2: tuple(range(8))}
    distill(model, everything, text, Recipe(64, 64, 16), report=reports.append)
    assert abs(reports[0].divergence) < 1e-5


def test_an_interrupted_training_goes_on_where_it_was(model: Path, text: list[np.ndarray], tmp_path: Path) -> None:
    wanted = distill(model, KEPT, text, RECIPE)
    state = tmp_path / "state"

    def stop(report: Report) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(model, KEPT, text, RECIPE, state=state, save_every=3, report=stop)
    reports: list[Report] = []
    found = distill(model, KEPT, text, RECIPE, state=state, save_every=3, report=reports.append)
    assert reports[0].step == 5
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match=r"another|other arguments \(corpus\)"):
        distill(model, KEPT, text, RECIPE, state=state, identity={"corpus": "b"})
    state.write_bytes(b"torn")
    with pytest.raises(ValueError, match="unreadable state"):
        distill(model, KEPT, text, RECIPE, state=state)


def test_half_a_step_is_never_gone_on_from(
    model: Path, text: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = distill(model, KEPT, text, RECIPE)
    state, update, calls = tmp_path / "state", torch.optim.AdamW.step, []

    def interrupted(self: torch.optim.Optimizer, closure: None = None) -> None:
        update(self, closure)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(model, KEPT, text, RECIPE, state=state, save_every=3)
    reports: list[Report] = []
    found = distill(model, KEPT, text, RECIPE, state=state, save_every=3, report=reports.append)
    assert reports[0].step == 4  # behind the last whole saving
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_every_epoch_takes_every_row_once() -> None:
    recipe = Recipe(tokens=1024, batch_tokens=64, row_tokens=16)
    numbers = [number for step in range(recipe.steps) for number in batch_rows(10, recipe, step)]
    epochs = [numbers[at : at + 10] for at in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_bad_input_is_named() -> None:
    with pytest.raises(FieldError, match=r"batch_tokens: got 100, allowed: multiples of row_tokens, 64"):
        Recipe(batch_tokens=100, row_tokens=64)
    with pytest.raises(FieldError, match="lr: got 2"):
        Recipe(lr=2.0)
    with pytest.raises(FieldError, match="tokens: got 0"):
        Recipe(tokens=0)
    with pytest.raises(ValueError, match="corpus: got 20 tokens, allowed: at least two rows of 16"):
        split_rows([np.arange(20)], RECIPE, torch.device("cpu"))


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(tokens=4096 * 100)
    factors = [recipe.factor(step) for step in range(recipe.steps)]
    assert factors[0] == pytest.approx(0.2)
    assert np.argmax(factors) == 4
    assert 0 < factors[-1] < 0.011
