"""A tiny recipe and tiny random corpora."""

import os
from pathlib import Path

import numpy as np
import pytest

from eval.reference_models.data import TokenCorpus
from eval.reference_models.recipe import DEFAULT_DATA_DIR, Recipe

SOURCES = ["gloss", "wikitext"]
SIGMOID = {
    "model_type": "deepseek_v3",
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
}


@pytest.fixture(params=["deepseek_v2", "deepseek_v3"])
def any_recipe(request: pytest.FixtureRequest) -> Recipe:
    """The tiny recipe in either architecture."""
    return make_recipe(SIGMOID if request.param == "deepseek_v3" else {})


@pytest.fixture
def tiny_recipe() -> Recipe:
    """The tiny recipe as DeepSeek-V2."""
    return make_recipe({})


def make_recipe(architecture: dict) -> Recipe:
    """Two expert layers, eight experts, sequences of 16 tokens; float32, so that results are exact."""
    raw = Recipe.load("mini_v2.yaml").model_dump()
    raw["name"] = "tiny"
    raw["model"] |= {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        **architecture,
    }
    raw["data"] |= {"sequence_length": 16, "weights": {"wikitext": 1.5, "gloss": 0.5}}
    raw["train"] |= {
        "total_tokens": 640,
        "warmup_tokens": 64,
        "batch_tokens": 64,
        "precision": "fp32",
        "compile": False,
        "eval_every_tokens": 128,
        "checkpoint_every_tokens": 256,
        "threads": 1,
    }
    return Recipe.model_validate(raw)


def random_corpus(seed: int, documents: int = 40) -> TokenCorpus:
    """Documents of 5 to 29 random tokens below 300."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 30, documents)
    return TokenCorpus(
        tokens=rng.integers(3, 300, lengths.sum()).astype(np.uint16),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        source_ids=np.arange(documents) % 2,
        n_bytes=lengths * 3,
        sources=SOURCES,
    )


@pytest.fixture
def corpus() -> TokenCorpus:
    return random_corpus(1)


@pytest.fixture
def heldout() -> TokenCorpus:
    return random_corpus(2)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The shared data folder; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SGLANG_MOE_OPT_DATA", DEFAULT_DATA_DIR))
    if not (folder / "SOURCES.md").exists():
        pytest.skip(f"no data folder at {folder}; set SGLANG_MOE_OPT_DATA")
    return folder
