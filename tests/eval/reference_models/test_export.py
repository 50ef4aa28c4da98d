"""The exported folder is the same model: for Hugging Face, and read back by this package."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from eval.reference_models.export import PARITY_LIMIT, load_exported, parity, stacked_state, write_model
from eval.reference_models.model import ReferenceModel
from eval.reference_models.recipe import Recipe


def random_model(recipe: Recipe) -> ReferenceModel:
    model = ReferenceModel(recipe.model)
    model.init_weights(3)
    for parameter in model.parameters():  # norms off 1, a head large enough for a difference to show
        parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    return model


def test_logits_equal_hugging_face(tiny_recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = random_model(tiny_recipe)
    tokens = torch.randint(0, tiny_recipe.model.vocab_size, (2, 33))
    assert model(tokens)[0].abs().max() > 0.1
    assert parity(tiny_recipe.model, model.state_dict(), tokens) <= PARITY_LIMIT


def test_weights_have_the_published_names_and_read_back(tiny_recipe: Recipe, tmp_path: Path) -> None:
    model = random_model(tiny_recipe)
    write_model(tmp_path / "m", tiny_recipe.model, model.state_dict(), torch.bfloat16)
    published = load_file(tmp_path / "m" / "model.safetensors")
    assert {value.dtype for value in published.values()} == {torch.bfloat16}
    width, hidden = tiny_recipe.model.moe_intermediate_size, tiny_recipe.model.hidden_size
    assert published["model.layers.1.mlp.experts.7.up_proj.weight"].shape == (width, hidden)
    assert published["model.layers.2.mlp.experts.0.down_proj.weight"].shape == (hidden, width)
    assert {"model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"} <= set(published)
    back = stacked_state(published, tiny_recipe.model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(back[name], value.bfloat16().float(), rtol=0, atol=0)
    load_exported(tmp_path / "m", tiny_recipe.model)


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
    _, _, weights, indices = exact.model.layers[layer].mlp.gate(x)
    counts = torch.bincount(indices.flatten(), minlength=tiny_recipe.model.n_routed_experts)
    reference = exact.model.layers[layer].mlp.experts(x, weights, indices, counts)
    grouped = fast.model.layers[layer].mlp.experts(x, weights, indices, counts)
    torch.testing.assert_close(grouped, reference, rtol=0.05, atol=0.02 * reference.abs().max().item())
