"""Routers, layers and least squares that refinement is made of, against transformers and the obvious formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_models import MODELS, make_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from sglang_moe_opt.pruning.compensation import compensate  # noqa: E402 (needs torch)
from sglang_moe_opt.pruning.decoder import Decoder, Pieces  # noqa: E402
from sglang_moe_opt.pruning.greedy import elimination_scores  # noqa: E402
from sglang_moe_opt.pruning.merging import align, assign, merge  # noqa: E402
from sglang_moe_opt.pruning.moe_layer import MoELayer, SwiGLU, Tensors  # noqa: E402
from sglang_moe_opt.pruning.ridge import Block, refit  # noqa: E402


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param) / "model", MODELS[request.param])


@pytest.fixture
def layer(model: Path):
    with Tensors(model) as tensors:
        yield MoELayer.read(tensors, 1)


def inputs(count: int, seed: int = 0):
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def pieces(count: int = 12, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 64, rng.integers(5, 40)) for _ in range(count)]


def test_the_decoder_and_its_layers_are_transformers(model: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    text = pieces()
    with Tensors(model) as tensors, torch.no_grad():
        decoder, packed = Decoder(tensors), Pieces.of(text)
        x = decoder.embed(packed)
        for layer_id in range(tensors.shape.num_layers):
            x = x + decoder.attention(layer_id, packed)(x)
            is_moe = layer_id in tensors.shape.moe_layer_ids
            mlp = MoELayer.read(tensors, layer_id) if is_moe else decoder.dense(layer_id)
            x = x + mlp(decoder.mlp_input(layer_id)(x))
        x = decoder.norm("model.norm")(x)
        wanted = torch.cat([reference.model(torch.from_numpy(piece)[None]).last_hidden_state[0] for piece in text])
    assert torch.allclose(x, wanted, atol=1e-4)


def test_a_pruned_router_is_the_full_one_with_logits_at_minus_infinity(layer: MoELayer) -> None:
    x, kept = inputs(50), (0, 2, 3, 5, 6, 7)
    router = layer.keeping(kept).router
    weights, ids = router(x)
    assert set(ids.flatten().tolist()) <= set(kept)
    logits = layer.router.logits(x)
    scores = logits.sigmoid() if router.shape.scoring == "sigmoid" else logits[:, list(kept)].logsumexp(1, keepdim=True)
    got = weights / router.scale
    if router.shape.scoring == "sigmoid":
        chosen = scores.gather(1, ids)
        assert torch.allclose(got, chosen / chosen.sum(1, keepdim=True), atol=1e-6)
    else:
        assert torch.allclose(got, (logits.gather(1, ids) - scores).exp(), atol=1e-6)


def test_refit_solves_the_joint_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.arange(0, 300, 2), torch.arange(100, 300), torch.arange(300)]
    blocks = [
        Block(r, torch.randn(len(r), 5, generator=generator), torch.randn(5, 4, generator=generator)) for r in rows
    ]
    target = torch.randn(300, 4, generator=generator)
    dense = torch.cat([torch.zeros(300, 5).index_copy(0, b.rows, b.features) for b in blocks], 1).double()
    before = torch.cat([block.weights for block in blocks]).double()
    gram = dense.t() @ dense
    penalty = 0.1 * torch.diag(gram.diagonal() + 0.1 * gram.diagonal().mean())
    wanted = torch.linalg.solve(gram + penalty, dense.t() @ target.double() + penalty @ before)
    assert torch.allclose(torch.cat(refit(blocks, target, 0.1)).double(), wanted, atol=1e-5)


def test_blocks_in_turns_come_near_the_joint_solution() -> None:
    generator = torch.Generator().manual_seed(1)
    blocks = [Block(torch.arange(400), torch.randn(400, 6, generator=generator), torch.zeros(6, 3)) for _ in range(4)]
    target = torch.cat([block.features for block in blocks], 1) @ torch.randn(24, 3, generator=generator)
    joint, turns = refit(blocks, target, 1e-6), refit(blocks, target, 1e-6, max_features=12)
    assert torch.allclose(torch.cat(joint), torch.cat(turns), atol=0.2)
    assert not torch.equal(torch.cat(joint), torch.cat(turns))


def test_elimination_removes_what_brute_force_removes(layer: MoELayer) -> None:
    x, shape = inputs(60), layer.router.shape
    full = layer(x) - layer.shared(x)
    length = full.norm(dim=1)
    importance = length.clamp(min=length.median().item()) ** -2
    group = [expert * shape.n_group // shape.num_experts for expert in range(shape.num_experts)]
    kept, order = list(range(shape.num_experts)), []
    least = 2
    while True:
        sizes = [sum(group[e] == g for e in kept) for g in range(shape.n_group)]
        candidates = [e for e in kept if sizes[group[e]] == max(sizes) and sizes[group[e]] > least]
        if not candidates:
            break

        def error(gone: int) -> float:
            rest = layer.keeping(tuple(e for e in kept if e != gone))
            return float((importance * (rest(x) - rest.shared(x) - full).square().sum(1)).sum())

        order.append(min(candidates, key=error))
        kept.remove(order[-1])
    scores = elimination_scores(layer, x)
    assert np.argsort(scores)[: len(order)].tolist() == order


def test_a_merged_twin_changes_nothing(layer: MoELayer) -> None:
    first = layer.expert(0)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = SwiGLU(first.gate[order], first.up[order], first.down[:, order])
    aligned = align(shuffled, first)
    assert all(torch.equal(a, b) for a, b in zip(aligned, first, strict=True))
    x = inputs(5)
    assert torch.allclose(shuffled(x), first(x), atol=1e-4)


@pytest.mark.parametrize("similarity", ["router", "output"])
def test_every_removed_expert_joins_a_kept_one(layer: MoELayer, similarity: str) -> None:
    kept, x = (0, 2, 5, 7), inputs(600)
    homes = assign(layer, kept, x, similarity)
    chosen = set(layer.router(x)[1].flatten().tolist())
    assert set(homes) == chosen - set(kept) and homes and set(homes.values()) <= set(kept)
    for method in ("average", "neurons"):
        merged = merge(layer, kept, x, method=method, similarity=similarity)
        assert set(merged) == set(homes.values())
        for expert, matrices in merged.items():
            own = layer.expert(expert)
            assert [part.shape for part in matrices] == [part.shape for part in own]
            assert not torch.equal(matrices.gate, own.gate)


def test_compensation_brings_the_stream_nearer(model: Path) -> None:
    with Tensors(model) as tensors:
        shape = tensors.shape
    kept = dict.fromkeys(shape.moe_layer_ids, (0, 1, 5, 6))
    fits = []
    tensors = compensate(model, kept, pieces(120), heldout=0.2, report=fits.append)
    assert [fit.layer_id for fit in fits] == list(shape.moe_layer_ids)
    assert all(fit.error_after < 0.9 * fit.error_before and fit.heldout_error < fit.error_before for fit in fits)
    names = {f"model.layers.{i}.mlp.experts.{e}.down_proj.weight" for i, ids in kept.items() for e in ids}
    names |= {f"model.layers.{i}.mlp.shared_experts.down_proj.weight" for i in kept}
    assert set(tensors) == names


def test_compensation_of_the_full_model_changes_nothing(model: Path) -> None:
    kept = {1: tuple(range(8)), 2: tuple(range(8))}
    with Tensors(model) as own:
        for name, tensor in compensate(model, kept, pieces(40)).items():
            assert torch.allclose(tensor, own[name], atol=1e-3)


def test_other_models_and_no_text_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="pieces"):
        compensate(model, {}, [])
    with Tensors(model) as tensors:
        tensors.checkpoint = replace(tensors.checkpoint, config=tensors.checkpoint.config | {"architectures": ["X"]})
        with pytest.raises(ValueError, match="got X"):
            Decoder(tensors)
        with pytest.raises(ValueError, match="no nothing in the checkpoint"):
            tensors["nothing"]
