"""The served model is the model: log-probabilities and greedy tokens against Hugging Face transformers."""

from __future__ import annotations

import pytest
import torch
from checkpoints import MINI_V2 as MINI_V2_FOLDER
from reference import assert_logprobs, prompt, reference
from server import CHUNKED_UNISOLATED, MINI_V2, MINI_V3, V2, V3, Kind, Servers

pytestmark = [pytest.mark.server, pytest.mark.slow]

LENGTHS = (1, 2, 37, 300, 600)
NEW_TOKENS = 64
BF16 = Kind("mini-v2" if (MINI_V2_FOLDER / "config.json").exists() else "random-v2", dtype="bfloat16")


def by_name(*kinds: Kind) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=[kind.model for kind in kinds])


@by_name(V2, V3, MINI_V2, MINI_V3)
def test_prompt_logprobs_equal_transformers(servers: Servers, kind: Kind) -> None:
    """Every position of every prompt, within 1e-4."""
    server = servers.get(kind)
    for length in LENGTHS:
        ids = prompt(kind.model, length)
        assert_logprobs(server.prompt_logprobs(ids), reference(server.model).logprobs(ids))


@by_name(CHUNKED_UNISOLATED, V3)
def test_chunked_prompt_logprobs_equal_transformers(servers: Servers, kind: Kind) -> None:
    """A prompt computed in chunks, each attending to the cached ones before it."""
    server = servers.get(kind)
    server.flush_cache()
    ids = prompt(kind.model, 600, seed=1)
    assert_logprobs(server.prompt_logprobs(ids), reference(server.model).logprobs(ids))


@by_name(V2, V3, MINI_V2)
def test_logprobs_after_a_cached_prefix_equal_transformers(servers: Servers, kind: Kind) -> None:
    """The end of a prompt whose beginning comes from the prefix cache."""
    server = servers.get(kind)
    server.flush_cache()
    ids = prompt(kind.model, 600, seed=2)
    server.tokens(ids[:500], new_tokens=1)
    hit = server.generate(ids, new_tokens=1, return_logprob=True, logprob_start_len=500)["meta_info"]
    assert hit["cached_tokens"] >= 490
    server.flush_cache()
    server.tokens(ids[:500], new_tokens=1)
    served = server.prompt_logprobs(ids, start=500)
    assert len(served) == 99
    assert_logprobs(served, reference(server.model).logprobs(ids))


@pytest.mark.parametrize(
    "kind",
    [V2, CHUNKED_UNISOLATED, V3, MINI_V2, MINI_V3],
    ids=["random-v2", "random-v2-chunked", "random-v3", "mini-v2", "mini-v3"],
)
def test_greedy_tokens_equal_transformers(servers: Servers, kind: Kind) -> None:
    """64 greedy tokens after prompts of 1 to 600 tokens, computed anew and then from the prefix cache."""
    server = servers.get(kind)
    server.flush_cache()
    decided = {}
    for length in LENGTHS:
        server.flush_cache()
        ids = prompt(kind.model, length)
        fresh = server.generate(ids, new_tokens=NEW_TOKENS)
        assert fresh["meta_info"]["cached_tokens"] == 0
        decided[length] = reference(server.model).check_greedy(ids, fresh["output_ids"])
        again = server.generate(ids, new_tokens=NEW_TOKENS)
        # The last prompt token is always computed; a prompt of one token has nothing to take from the cache.
        assert again["meta_info"]["cached_tokens"] == length - 1
        reference(server.model).check_greedy(ids, again["output_ids"])
    print(f"{kind.model}: of {NEW_TOKENS} tokens decided by more than rounding, by prompt length: {decided}")
    assert min(decided.values()) >= NEW_TOKENS * 3 // 4


@by_name(V2, V3, MINI_V2)
def test_transformers_own_generation_gives_the_same_tokens(servers: Servers, kind: Kind) -> None:
    """The reference's generation loop, literally, for one prompt: it confirms how the others are compared."""
    server = servers.get(kind)
    ids = prompt(kind.model, 37)
    served = server.tokens(ids, new_tokens=NEW_TOKENS)
    generated = reference(server.model).greedy(ids, NEW_TOKENS)
    # Both are held against the same logits, so that the two can part only at a near-tie.
    for tokens in (served, generated):
        assert reference(server.model).check_greedy(ids, tokens) >= NEW_TOKENS * 3 // 4


@pytest.mark.parametrize("kind", [BF16], ids=[BF16.model])
def test_bf16_is_as_exact_as_transformers_in_bf16(servers: Servers, kind: Kind) -> None:
    """Served bf16 strays from the fp32 truth no further than transformers' own bf16 does.

    Routing ties flip in bf16, so that single positions differ by whole units; root-mean-square and median are stable.
    """
    server = servers.get(kind)
    served_errors, hf_errors = [], []
    for length, seed in ((300, 0), (600, 1)):
        ids = prompt(kind.model, length, seed)
        exact = reference(server.model).logprobs(ids)[:-1]
        rounded = reference(server.model, torch.bfloat16).logprobs(ids)[:-1]
        for position, by_token in enumerate(server.prompt_logprobs(ids)):
            tokens = torch.tensor(list(by_token))
            served_errors.append(torch.tensor(list(by_token.values())) - exact[position, tokens])
            hf_errors.append(rounded[position, tokens] - exact[position, tokens])
    served, hf = torch.cat(served_errors), torch.cat(hf_errors)
    for name, measure in {"rms": lambda e: e.square().mean().sqrt(), "median": lambda e: e.abs().median()}.items():
        ours, theirs = measure(served).item(), measure(hf).item()
        print(f"{kind.model} bf16 {name} error against fp32: served {ours:.4f}, transformers {theirs:.4f}")
        assert ours <= 1.5 * theirs + 0.005
