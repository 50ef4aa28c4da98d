"""Writes a training checkpoint as a Hugging Face model folder that transformers and SGLang load."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from eval.reference_models.model import ReferenceModel
from eval.reference_models.recipe import ModelSpec, Recipe

PARITY_LIMIT = 1e-4
"""Largest allowed difference of float32 logits between the training model and Hugging Face's."""


ARCHITECTURES = {"deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
FP32_SUFFIX = "e_score_correction_bias"
"""Kept in float32 whatever the weights' type, as in the published V3 checkpoints."""


def config_json(spec: ModelSpec, tokenizer: PreTrainedTokenizerFast | None, dtype: str) -> dict[str, Any]:
    """The model's config.json: the architecture plus what is fixed for this family."""
    v3 = spec.model_type == "deepseek_v3"
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if tokenizer is not None:
        special = {key: getattr(tokenizer, key) for key in special}
    return {
        "architectures": [ARCHITECTURES[spec.model_type]],
        **spec.model_dump(exclude={"rope_theta"}),
        **special,
        "num_key_value_heads": spec.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid" if v3 else "softmax",
        "topk_method": "noaux_tc" if v3 else "greedy",
        "norm_topk_prob": v3,
        "rope_theta": spec.rope_theta,
        "rope_scaling": None,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def published_state(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Split the stacked experts into the published names `mlp.experts.E.{gate,up,down}_proj.weight`."""
    published: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.endswith("experts.gate_up_proj"):
            for expert, halves in enumerate(value):
                gate, up = halves.chunk(2)
                stem = name.removesuffix("gate_up_proj") + str(expert)
                published |= {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            for expert, matrix in enumerate(value):
                published[f"{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = matrix
        else:
            published[name] = value
    return {
        name: value.detach().to(torch.float32 if name.endswith(FP32_SUFFIX) else dtype).clone().contiguous()
        for name, value in published.items()
    }


def stacked_state(published: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """The inverse of `published_state`, in float32."""
    state = {name: value.float() for name, value in published.items() if ".mlp.experts." not in name}
    for layer in spec.moe_layers:
        stem = f"model.layers.{layer}.mlp.experts"

        def stack(kind: str, stem: str = stem) -> torch.Tensor:
            names = (f"{stem}.{expert}.{kind}_proj.weight" for expert in range(spec.n_routed_experts))
            return torch.stack([published[name].float() for name in names])

        state[f"{stem}.gate_up_proj"] = torch.cat([stack("gate"), stack("up")], dim=1)
        state[f"{stem}.down_proj"] = stack("down")
    return state


def load_exported(directory: Path, spec: ModelSpec, compute_dtype: torch.dtype = torch.float32) -> ReferenceModel:
    """The exported checkpoint as a `ReferenceModel`."""
    file = directory / "model.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"no exported model in {directory}; run: python -m eval.reference_models export")
    model = ReferenceModel(spec, compute_dtype)
    model.load_state_dict(stacked_state(load_file(file), spec))
    return model


def write_model(
    directory: Path,
    spec: ModelSpec,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """Write weights, configuration and tokenizer; each file is replaced atomically, others are left alone."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype_name = str(dtype).removeprefix("torch.")
    config = config_json(spec, tokenizer, dtype_name)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".export-") as temporary:
        folder = Path(temporary)
        save_file(published_state(state, dtype), folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            # The class name that both transformers 4 and 5 know.
            write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
        for file in sorted(folder.iterdir()):
            file.chmod(0o644)
            os.replace(file, directory / file.name)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final line break."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def parity(spec: ModelSpec, state: dict[str, torch.Tensor], tokens: torch.Tensor) -> float:
    """Largest |difference| of float32 logits on (batch, sequence) `tokens` between this model and Hugging Face's.

    Hugging Face's side goes through the whole export: safetensors file, published names, from_pretrained.
    """
    from transformers import AutoModelForCausalLM

    mine = ReferenceModel(spec)
    mine.load_state_dict(state)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", spec, state, torch.float32)
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
        theirs.eval()
        return (mine(tokens)[0] - theirs(tokens).logits).abs().max().item()


def chat_samples(directory: Path, questions: list[str]) -> dict[str, str]:
    """Greedy answers of the exported chat model through transformers' Auto classes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    answers = {}
    for question in questions:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, max_new_tokens=40, do_sample=False, tokenizer=tokenizer)
        answers[question] = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def licences(data_dir: Path) -> dict[str, str]:
    """Licence of each data file as SOURCES.md states it."""
    rows: dict[str, str] = {}
    for line in (data_dir / "SOURCES.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 6 and "/" in cells[0]:
            rows[cells[0]] = rows.get(next(reversed(rows), ""), "") if cells[4] == "as above" else cells[4]
    return rows


def training_summary(
    recipe: Recipe, log_file: Path, tokens: int, difference: float, n_parameters: int, points: int = 150
) -> dict[str, Any]:
    """What the model card says about training: recipe, length, parity and a thinned training curve."""
    rows = [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["tokens"] <= tokens]
    width = max(1, len(rows) // points)
    blocks = [rows[start : start + width] for start in range(0, len(rows), width)]
    curve = [
        {
            "tokens": block[-1]["tokens"],
            "loss": round(sum(row["loss"] for row in block) / len(block), 4),
            "lr": block[-1]["lr"],
            "load_max_over_mean": max(block[-1]["load_max_over_mean"], default=1.0),
        }
        for block in blocks
    ]
    return {
        "name": recipe.name,
        "tokens": tokens,
        "parameters": n_parameters,
        "logit_difference_from_hugging_face": difference,
        "recipe": recipe.model_dump(mode="json"),
        "heldout_bpb": [{"tokens": r["tokens"], "bpb": r["heldout_bpb"]} for r in rows if "heldout_bpb" in r],
        "curve": curve,
    }


def trained_recipe(directory: Path) -> Recipe:
    """The recipe that the exported checkpoint was trained with; the shipped file may have moved on since."""
    return Recipe.model_validate(json.loads((directory / "training.json").read_text(encoding="utf-8"))["recipe"])


def training_tokens(directory: Path) -> int:
    """How many tokens the exported checkpoint had seen."""
    tokens: int = json.loads((directory / "training.json").read_text(encoding="utf-8"))["tokens"]
    return tokens
