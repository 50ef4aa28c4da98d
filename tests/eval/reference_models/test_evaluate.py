"""Evaluation: bits per byte, fewer experts, routing, and the card made from them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.reference_models.balance import balance_loss, expert_counts, max_over_mean, router_entropy
from eval.reference_models.card import SOURCE_FILES, write_card
from eval.reference_models.data import TokenCorpus, heldout_windows
from eval.reference_models.evaluate import evaluate, experts_per_token
from eval.reference_models.export import training_summary, write_json
from eval.reference_models.gate import best_half, only_experts, relative_interval, soft_counts, verdict
from eval.reference_models.handover import LOG_NAME
from eval.reference_models.model import ReferenceModel
from eval.reference_models.recipe import Recipe
from eval.reference_models.router import SigmoidRouter
from eval.reference_models.train import train

CALIBRATION = torch.randint(3, 300, (4, 16), generator=torch.Generator().manual_seed(5))


def test_balance_loss_is_one_for_even_routing_and_grows_with_load() -> None:
    even = torch.full((8, 4), 0.25)
    assert balance_loss(even, torch.tensor([4, 4, 4, 4])).item() == pytest.approx(1.0)
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(8, 1)
    assert balance_loss(skewed, torch.tensor([8, 8, 0, 0])).item() == pytest.approx(4 * (0.5 * 0.7 + 0.5 * 0.1))
    assert expert_counts(torch.tensor([[0, 1], [0, 3]]), 4).tolist() == [2, 1, 0, 1]
    assert max_over_mean(torch.tensor([2, 1, 0, 1])) == 2.0
    assert router_entropy(even) == pytest.approx(1.0)


def test_windows_predict_each_token_once() -> None:
    inputs, targets = heldout_windows(np.arange(10, 21), 4)
    assert inputs.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 0]]
    assert targets.tolist() == [[11, 12, 13, 14], [15, 16, 17, 18], [19, 20, -100, -100]]


def test_bits_per_byte_of_a_uniform_model(tiny_recipe: Recipe, heldout: TokenCorpus) -> None:
    model = ReferenceModel(tiny_recipe.model)
    model.init_weights(0)
    torch.nn.init.zeros_(model.lm_head.weight)
    tokens, n_bytes = heldout.only("wikitext")
    expected = (len(tokens) - 1) * math.log2(tiny_recipe.model.vocab_size) / n_bytes
    result = evaluate(model, heldout, 16, CALIBRATION, CALIBRATION)
    assert result["text_bpb"] == pytest.approx(expected, rel=1e-4)
    assert [row["na"] for row in result["experts_per_token"]] == [3, 2, 1]
    assert all(row["change_percent"] == pytest.approx(0, abs=1e-3) for row in result["experts_per_token"])
    assert [row["layer"] for row in result["routing"]] == [row["layer"] for row in result["routing_on_training_mix"]]
    assert [row["layer"] for row in result["routing"]] == [1, 2]


def test_fewer_experts_are_the_model_with_that_top_k(any_recipe: Recipe) -> None:
    model = ReferenceModel(any_recipe.model)
    model.init_weights(0)
    router, x = model.routers[0], torch.randn(5, 32)
    full = router(x)
    with experts_per_token(model, 1):
        one = router(x)
    assert one.indices.shape == (5, 1)
    best = full.weights.argmax(dim=1)
    assert (one.indices[:, 0] == full.indices[torch.arange(5), best]).all()
    if any_recipe.model.model_type == "deepseek_v2":
        torch.testing.assert_close(one.weights[:, 0], full.weights.max(dim=1).values)
    else:
        torch.testing.assert_close(one.weights, torch.full((5, 1), any_recipe.model.routed_scaling_factor))
    assert router.top_k == any_recipe.model.num_experts_per_tok
    with pytest.raises(ValueError, match="n_activated=4"), experts_per_token(model, 4):
        pass


def test_hidden_experts_are_never_chosen(any_recipe: Recipe) -> None:
    model = ReferenceModel(any_recipe.model)
    model.init_weights(0)
    kept = [torch.tensor([0, 3, 5, 6]), torch.tensor([1, 2, 4, 7])]
    x = torch.randn(200, 32)
    with only_experts(model, kept):
        for router, ids in zip(model.routers, kept, strict=True):
            assert set(router(x).indices.flatten().tolist()) == set(ids.tolist())
    assert set(model.routers[0](x).indices.flatten().tolist()) == set(range(8))


def test_soft_counts_are_the_sums_of_the_given_weights(any_recipe: Recipe) -> None:
    model = ReferenceModel(any_recipe.model)
    model.init_weights(0)
    expected = torch.zeros(8)
    for x in CALIBRATION:  # one window at a time, slot by slot
        routing = model(x[None])[1][1]
        for weights, indices in zip(routing.weights.tolist(), routing.indices.tolist(), strict=True):
            for weight, index in zip(weights, indices, strict=True):
                expected[index] += weight
    torch.testing.assert_close(soft_counts(model, CALIBRATION)[1], expected)


def test_half_is_kept_in_every_group(any_recipe: Recipe) -> None:
    kept = best_half(torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1]), any_recipe.model.n_group)
    expected = [0, 1, 2, 3] if any_recipe.model.n_group == 1 else [0, 1, 4, 5]
    assert sorted(kept.tolist()) == expected


def test_gate_asks_for_a_loss_without_experts() -> None:
    pruned = [{"method": "soft count", "change_percent": 4.0}]
    pruned += [{"method": f"random, seed {seed}", "change_percent": 5.0 + seed} for seed in range(3)]
    good = verdict([{"na": 2, "change_percent": 0.1}, {"na": 1, "change_percent": 3.5}], pruned)
    assert good["na_1_hurts"] and good["random_pruning_hurts_more_than_soft_count"]
    bad = verdict([{"na": 1, "change_percent": 2.9}], [{"method": "soft count", "change_percent": 5.5}, *pruned[1:]])
    assert not bad["na_1_hurts"] and not bad["random_pruning_hurts_more_than_soft_count"]


def test_bias_moves_against_the_load(tiny_recipe: Recipe) -> None:
    router = SigmoidRouter(tiny_recipe.model)
    router.rebalance(torch.tensor([4, 0, 0, 0, 1, 1, 1, 1]), 0.01)
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor([-1.0, 1, 1, 1, 0, 0, 0, 0]) * 0.01)


def test_paired_interval_of_a_constant_change_has_no_width() -> None:
    base = np.linspace(1, 2, 50)
    assert relative_interval(1.03 * base, base) == pytest.approx((3.0, 3.0, 3.0))


def test_card_needs_nothing_but_the_results(
    tiny_recipe: Recipe, corpus: TokenCorpus, heldout: TokenCorpus, tmp_path: Path
) -> None:
    run = train(tiny_recipe, tmp_path / "run", corpus, heldout)
    card = tmp_path / "card"
    card.mkdir()
    summary = training_summary(tiny_recipe, tmp_path / "run" / LOG_NAME, run.tokens, 1e-6, 1000)
    summary["recipe"]["data"]["weights"] = dict.fromkeys(SOURCE_FILES, 1.0)
    write_json(card / "training.json", summary | {"licences": {"wikitext": "CC BY-SA"}})
    results = evaluate(run.model, heldout, 16, CALIBRATION, CALIBRATION) | {
        "training_tokens": run.tokens,
        "chat": {"Why?": "Because."},
    }
    write_json(card / "evaluation.json", results)
    write_card(card)
    text = (card / "README.md").read_text()
    assert f"{results['text_bpb']:.3f} bits per byte" in text and "- Why? -> Because." in text
    assert (card / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    write_json(card / "evaluation.json", results | {"training_tokens": 1})
    with pytest.raises(ValueError, match="evaluate again"):
        write_card(card)
    json.loads((card / "training.json").read_text())
