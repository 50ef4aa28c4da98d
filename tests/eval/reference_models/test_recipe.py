"""The recipe file is validated before any work starts."""

import pytest
from pydantic import ValidationError

from eval.reference_models.optim import learning_rate_scale
from eval.reference_models.recipe import Recipe


def changed(section: str, **values: object) -> dict:
    raw = Recipe.load("mini_v2.yaml").model_dump()
    raw[section] |= values
    return raw


def test_shipped_recipe_has_the_documented_architecture() -> None:
    model = Recipe.load("mini_v2.yaml").model
    assert (model.hidden_size, model.n_routed_experts, model.num_experts_per_tok) == (192, 64, 6)
    assert model.moe_layers == [1, 2, 3, 4, 5]
    assert model.qk_head_dim == 48


def test_shipped_v3_recipe_has_the_documented_architecture() -> None:
    v2, v3 = Recipe.load("mini_v2.yaml"), Recipe.load("mini_v3.yaml")
    assert (v3.model.model_type, v3.model.num_experts_per_tok, v3.model.n_shared_experts) == ("deepseek_v3", 8, 1)
    assert (v3.model.n_group, v3.model.topk_group, v3.model.n_routed_experts) == (8, 4, 64)
    assert (v3.data, v3.seed) == (v2.data, v2.seed), "the two models share data and tokenizer"


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"num_experts_per_tok": 65}, "num_experts_per_tok=65 exceeds n_routed_experts=64"),
        ("model", {"first_k_dense_replace": 7}, "first_k_dense_replace=7 exceeds"),
        ("model", {"qk_rope_head_dim": 15}, "must be even"),
        ("model", {"num_attention_heads": 5}, "multiple of num_attention_heads=5"),
        ("model", {"model_type": "llama"}, "deepseek_v2"),
        ("model", {"n_group": 5}, "n_group=5 must divide"),
        ("model", {"n_group": 64, "topk_group": 3}, "hold fewer than num_experts_per_tok=6"),
        ("data", {"weights": {"wikitext": -1.0}}, "weights must be >= 0"),
        ("data", {"sequence_length": 4096}, "exceeds max_position_embeddings"),
        ("train", {"batch_tokens": 1000}, "multiple of sequence_length=512"),
        ("train", {"learning_rate": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_named(section: str, values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(changed(section, **values))


def test_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"mini_v2\.yaml"):
        Recipe.load("no_such.yaml")


def test_schedule_warms_up_stays_and_decays_to_zero() -> None:
    train = Recipe.load("mini_v2.yaml").train.model_copy(update={"warmup_tokens": 100, "decay_fraction": 0.25})
    assert learning_rate_scale(50, train, 1000) == 0.5
    assert learning_rate_scale(750, train, 1000) == 1.0
    assert learning_rate_scale(875, train, 1000) == 0.5
    assert learning_rate_scale(1000, train, 1000) == 0.0
    assert learning_rate_scale(450, train, 500) < 1.0, "a lower total starts the decay earlier"
