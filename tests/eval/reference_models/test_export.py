"""The exported folder is the same model: for Hugging Face, and read back by this package."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from eval.reference_models.export import (
    FP32_SUFFIX,
    PARITY_LIMIT,
    load_exported,
    parity,
    stacked_state,
    trained_recipe,
    write_model,
)
from eval.reference_models.model import ReferenceModel
from eval.reference_models.recipe import Recipe
from eval.reference_models.router import SigmoidRouter


def random_model(recipe: Recipe) -> ReferenceModel:
    model = ReferenceModel(recipe.model)
    model.init_weights(3)
    for parameter in model.parameters():  # norms off 1, a head large enough for a difference to show
        parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    for router in model.routers:
        if isinstance(router, SigmoidRouter):
            router.e_score_correction_bias += torch.randn(recipe.model.n_routed_experts) * 0.1
    return model


def test_logits_equal_hugging_face(any_recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = random_model(any_recipe)
    tokens = torch.randint(0, any_recipe.model.vocab_size, (2, 33))
    assert model(tokens)[0].abs().max() > 0.1
    assert parity(any_recipe.model, model.state_dict(), tokens) <= PARITY_LIMIT


def test_weights_have_the_published_names_and_read_back(any_recipe: Recipe, tmp_path: Path) -> None:
    model = random_model(any_recipe)
    write_model(tmp_path / "m", any_recipe.model, model.state_dict(), torch.bfloat16)
    published = load_file(tmp_path / "m" / "model.safetensors")
    for name, value in published.items():
        assert value.dtype == (torch.float32 if name.endswith(FP32_SUFFIX) else torch.bfloat16), name
    width, hidden = any_recipe.model.moe_intermediate_size, any_recipe.model.hidden_size
    assert published["model.layers.1.mlp.experts.7.up_proj.weight"].shape == (width, hidden)
    assert published["model.layers.2.mlp.experts.0.down_proj.weight"].shape == (hidden, width)
    assert {"model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"} <= set(published)
    back = stacked_state(published, any_recipe.model)
    for name, value in model.state_dict().items():
        expected = value if name.endswith(FP32_SUFFIX) else value.bfloat16().float()
        torch.testing.assert_close(back[name], expected, rtol=0, atol=0)
    load_exported(tmp_path / "m", any_recipe.model)


def test_other_files_in_the_folder_survive_an_export(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").write_text("card")
    write_model(tmp_path / "m", tiny_recipe.model, random_model(tiny_recipe).state_dict(), torch.bfloat16)
    assert (tmp_path / "m" / "README.md").read_text() == "card"
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "no temporary folder is left"


def test_grouped_bf16_experts_agree_with_float32(tiny_recipe: Recipe) -> None:
    exact, fast = random_model(tiny_recipe), ReferenceModel(tiny_recipe.model, torch.bfloat16)
    fast.load_state_dict(exact.state_dict())
    x = torch.randn(40, tiny_recipe.model.hidden_size)
    layer = 1
    routing = exact.model.layers[layer].mlp.gate(x)
    reference = exact.model.layers[layer].mlp.experts(x, routing)
    fast.model.layers[layer].mlp.experts.fused = False
    grouped = fast.model.layers[layer].mlp.experts(x, routing)
    torch.testing.assert_close(grouped, reference, rtol=0.05, atol=0.02 * reference.abs().max().item())


def test_a_shipped_checkpoint_is_read_with_its_own_recipe() -> None:
    folder = Recipe.load("mini_v2.yaml").checkpoint_dir
    spec, config = trained_recipe(folder).model, json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in ("routed_scaling_factor", "num_experts_per_tok", "model_type")} == {
        "routed_scaling_factor": spec.routed_scaling_factor,
        "num_experts_per_tok": spec.num_experts_per_tok,
        "model_type": spec.model_type,
    }
