"""A schedule by hint is the model with that smaller top-k: against transformers with its gates edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference import assert_logprobs, check_best, prompt, reference
from server import EDITED, MINI_V2, MINI_V3, V2, V3, Kind, Server, Servers
from torch import Tensor

from sglang_moe_opt.hints import resolve
from sglang_moe_opt.pruning.router import routed_scale

pytestmark = [pytest.mark.server, pytest.mark.slow]

NEW_TOKENS = 64
DECIDED = NEW_TOKENS * 3 // 4
"""So many of the tokens must be the reference's by more than rounding, or a test would say nothing."""

models = pytest.mark.parametrize("kind", [V2, V3, MINI_V2, MINI_V3], ids=lambda kind: kind.model)


def assert_like_top_k(server: Server, hint: object, per_layer: list[int]) -> None:
    """Log-probabilities of a prompt and the tokens after it, under the hint and under the edited gates."""
    ids = prompt(server.kind.model, 120, seed=3)
    model = reference(server.model)
    with model.keeping(per_layer):
        assert_logprobs(server.prompt_logprobs(ids, hint), model.logprobs(ids))
        assert model.check_greedy(ids, server.tokens(ids, hint, new_tokens=NEW_TOKENS)) >= DECIDED


@models
@pytest.mark.parametrize("na", [1, 2, 4])
def test_uniform(servers: Servers, kind: Kind, na: int) -> None:
    """{na: N} is the model with num_experts_per_tok=N."""
    server = servers.get(kind)
    assert_like_top_k(server, {"na": na}, [na] * len(server.shape.moe_layer_ids))


@models
def test_every_layer_its_own(servers: Servers, kind: Kind) -> None:
    """An explicit list, and (b, h, e, p) worked out by hand: linear between the first, the p-th and the last layer."""
    server = servers.get(kind)
    assert len(server.shape.moe_layer_ids) == 5
    assert_like_top_k(server, {"layers": [1, 4, 2, 6, 3]}, [1, 4, 2, 6, 3])
    assert_like_top_k(server, {"schedule": [6, 2, 1, 3]}, [6, 4, 2, 2, 1])


@models
def test_full_and_more_than_the_model_has_are_the_model(servers: Servers, kind: Kind) -> None:
    """`full` and na >= top-k: one cache namespace, the same tokens, and those of the unedited reference."""
    server = servers.get(kind)
    server.flush_cache()
    ids = prompt(kind.model, 200, seed=4)
    plain = server.tokens(ids, new_tokens=NEW_TOKENS)
    assert reference(server.model).check_greedy(ids, plain) >= DECIDED
    top_k = server.shape.top_k
    for hint in (
        "full",
        {"na": top_k},
        {"na": 1024},
        {"min_ratio": 0.0},
        {"top_p": 1.0},
        {"na": top_k, "rescale": 2.0},
    ):
        answer = server.generate(ids, hint, new_tokens=NEW_TOKENS)
        assert answer["output_ids"] == plain, hint
        assert answer["meta_info"]["cached_tokens"] == len(ids) - 1, hint


@models
def test_each_phase_its_own(servers: Servers, kind: Kind) -> None:
    """A prompt in full and an answer with one expert, and the other way round."""
    server = servers.get(kind)
    ids = prompt(kind.model, 60, seed=5)
    top_k = server.shape.top_k
    for hint, prefill, decode in (
        ("thrifty", top_k, 1),
        ({"prefill": {"na": 1}, "decode": "full"}, 1, top_k),
        ({"prefill": {"na": 3}, "decode": "fast"}, 3, 2),
    ):
        tokens = server.tokens(ids, hint, new_tokens=NEW_TOKENS)
        logits = reference(server.model).phased_logits(ids, tokens[:-1], prefill, decode)
        assert check_best(logits, tokens) >= DECIDED, hint


@pytest.mark.parametrize("kind", [V2, MINI_V2], ids=lambda kind: kind.model)
@pytest.mark.parametrize(
    ("hint", "rule"),
    [
        ({"min_ratio": 0.4}, lambda w: w >= 0.4 * w[:, :1]),
        ({"min_ratio": 0.7, "min_na": 2}, lambda w: (w >= 0.7 * w[:, :1]) | (torch.arange(w.shape[1]) < 2)),
        ({"min_weight": 0.05}, lambda w: (w >= 0.05) | (torch.arange(w.shape[1]) < 1)),
        ({"top_p": 0.6}, lambda w: (w.cumsum(-1) - w) < 0.6 * w.sum(-1, keepdim=True)),
    ],
    ids=["min_ratio", "min_ratio+min_na", "min_weight", "top_p"],
)
def test_magnitude_rules(servers: Servers, kind: Kind, hint: object, rule: Callable[[Tensor], Tensor]) -> None:
    """Rules on the router's weights, written here a second time on the reference's gates (V2 does not renormalise)."""
    server = servers.get(kind)
    ids = prompt(kind.model, 120, seed=6)
    model = reference(server.model)
    scale = routed_scale(json.loads((Path(server.model) / "config.json").read_text()))  # is in the reference's weights
    with model.dropping(lambda weights: rule(weights / scale)):
        assert_logprobs(server.prompt_logprobs(ids, hint), model.logprobs(ids))
        assert model.check_greedy(ids, server.tokens(ids, hint, new_tokens=NEW_TOKENS)) >= DECIDED


@pytest.mark.parametrize("kind", [EDITED], ids=["num_experts_per_tok=2"])
def test_hint_equals_a_server_with_the_edited_config(v2: Server, servers: Servers, kind: Kind) -> None:
    """Two real servers: {na: 2} by hint, and no policy but --json-model-override-args."""
    prompts = [prompt("random-v2", length, seed=7) for length in (1, 40, 300)]
    by_hint = [v2.tokens(ids, {"na": 2}) for ids in prompts]
    full = [v2.tokens(ids) for ids in prompts]
    edited = servers.get(kind)
    assert [edited.tokens(ids) for ids in prompts] == by_hint
    assert all(a != b for a, b in zip(by_hint, full, strict=True))
    assert resolve({"na": 2}, v2.policy, v2.shape).mean_na == 2
