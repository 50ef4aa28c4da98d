"""CPU kernels against plain torch in float64, and that no output depends on its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native

pytestmark = pytest.mark.skipif(not native.ready(), reason="no C++ compiler for the CPU kernels")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 192, 192), (7, 80, 192), (13, 100, 48), (300, 65, 80), (5, 64, 2048), (0, 8, 16), (2, 1, 7)]
)
def test_linear(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, weight, bias = normal(m, k, dtype=dtype), normal(n, k, dtype=dtype, seed=1), normal(n, dtype=dtype, seed=2)
    weight = weight / k**0.5
    close(native.linear(x, weight, bias), x.double() @ weight.double().T + bias.double(), dtype)
    wide = native.linear(x, weight, dtype=torch.float32)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), x.double() @ weight.double().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_apart(dtype: torch.dtype) -> None:
    x, weight = normal(9, 100, dtype=dtype)[:, 20:84], normal(32, 64, dtype=dtype, seed=1)
    assert torch.equal(native.linear(x, weight), native.linear(x.contiguous(), weight))
    assert native.linear(normal(2, 3, 64, dtype=dtype), weight).shape == (2, 3, 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    x, weight = normal(40, 200, dtype=dtype), normal(70, 200, dtype=dtype, seed=1)
    whole = native.linear(x, weight)
    for rows in (1, 2, 3, 5, 6, 7, 11, 23):
        assert torch.equal(native.linear(x[:rows], weight), whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_linear(dtype: torch.dtype) -> None:
    x, weight = normal(7, 3, 48, dtype=dtype), normal(3, 64, 48, dtype=dtype, seed=1) / 7
    out = torch.zeros(7, 3, 80, dtype=dtype)
    native.head_linear(x[..., :48], weight, out)
    close(out[..., :64], torch.einsum("mhk,hnk->mhn", x.double(), weight.double()), dtype)
    assert not out[..., 64:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_do_not_depend_on_company(dtype: torch.dtype) -> None:
    x = normal(30, 64, dtype=dtype)
    w13, w2 = normal(8, 96, 64, dtype=dtype, seed=1) / 8, normal(8, 64, 48, dtype=dtype, seed=2) / 7
    generator = torch.Generator().manual_seed(3)
    ids = torch.rand(30, 8, generator=generator).argsort(-1)[:, :4].int()
    weights = torch.rand(30, 4, generator=generator)
    whole = native.experts(x, w13, w2, ids, weights)
    for token in (0, 13, 29):
        one = slice(token, token + 1)
        assert torch.equal(native.experts(x[one], w13, w2, ids[one], weights[one]), whole[one])


def attend(q: Tensor, cache: Tensor, positions: Tensor, visible: int, latent: int, scale: float) -> Tensor:
    rows = cache[positions[:visible].long()].double()
    return (q.double() @ rows.T * scale).softmax(-1) @ rows[:, :latent]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [None, [5, 1, 300], [33, 1, 512]], ids=["decode", "extend", "whole"])
def test_mla_attention(queries: list[int] | None, dtype: torch.dtype) -> None:
    heads, latent, rope, scale = 6, 64, 16, 0.2
    lengths, pool_rows = [33, 1, 512], [4, 0, 7]
    cache = normal(4000, latent + rope, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    slots = torch.stack([torch.randperm(4000, generator=generator)[:700] for _ in range(9)]).int()
    counts = queries or [1, 1, 1]
    q = normal(sum(counts), heads, latent + rope, dtype=dtype, seed=2)
    out = torch.full((sum(counts), heads, latent), torch.nan, dtype=dtype)
    arguments = (slots, torch.tensor(pool_rows), torch.tensor(lengths), queries and torch.tensor(queries), scale)
    native.mla_attention(q, cache, out, *arguments)
    token = 0
    for length, row, count in zip(lengths, pool_rows, counts, strict=True):
        for i in range(count):
            close(out[token], attend(q[token], cache, slots[row], length - count + i + 1, latent, scale), dtype)
            token += 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_a_sequence_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    cache, q = normal(300, 80, dtype=dtype), normal(4, 16, 80, dtype=dtype, seed=1)
    slots = torch.arange(280, dtype=torch.int32).view(4, 70)
    rows, lengths = torch.arange(4), torch.tensor([70, 3, 41, 64])
    whole = native.mla_attention(q, cache, q.new_empty(4, 16, 64), slots, rows, lengths, None, 0.3)
    for i in range(4):
        one = slice(i, i + 1)
        alone = native.mla_attention(q[one], cache, q.new_empty(1, 16, 64), slots, rows[one], lengths[one], None, 0.3)
        assert torch.equal(alone, whole[one])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
def test_mla_rope(interleaved: bool, dtype: torch.dtype) -> None:
    tokens, heads, rank, rope = 5, 3, 64, 16
    half = rope // 2
    q, latent = normal(tokens, heads, 40, dtype=dtype)[..., 24:], normal(tokens, rank + rope, dtype=dtype, seed=1)
    weight, angles = normal(rank, dtype=dtype, seed=2), normal(100, rope, dtype=torch.float32, seed=3)
    positions, where = torch.tensor([7, 0, 99, 7, 50]), torch.tensor([3, 1, 8, 0, 5])
    cache, q_out = torch.zeros(9, rank + rope, dtype=dtype), torch.zeros(tokens, heads, rank + rope, dtype=dtype)
    native.mla_rope(q, q_out, latent, weight, 1e-6, angles, positions, cache, where, interleaved=interleaved)

    def rotated(x: Tensor) -> Tensor:
        cos, sin = angles[positions].double().view(tokens, *[1] * (x.dim() - 2), rope).split(half, -1)
        a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.split(half, -1)
        a, b = a.double(), b.double()
        parts = (a * cos - b * sin, b * cos + a * sin)
        return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)

    close(q_out[..., rank:], rotated(q), dtype)
    close(cache[where][:, rank:], rotated(latent[:, rank:]), dtype)
    x = latent[:, :rank].double()
    close(cache[where][:, :rank], x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double(), dtype)
    assert not q_out[..., :rank].any() and not cache[[2, 4, 6, 7]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [192, 100])
def test_rms_norm(n: int, dtype: torch.dtype) -> None:
    x, residual, weight = normal(7, n, dtype=dtype), normal(7, n, dtype=dtype, seed=1), normal(n, dtype=dtype, seed=2)

    def norm(values: Tensor) -> Tensor:
        return values * (values.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()

    close(native.rms_norm(x, weight, 1e-6), norm(x.double()), dtype)
    total = x.float() + residual.float()
    close(native.rms_norm(x, weight, 1e-6, residual), norm(total.double()), dtype)
    assert torch.equal(residual, total.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_also_far_out(dtype: torch.dtype) -> None:
    x = normal(6, 100, dtype=dtype) * torch.tensor([1, 5, 20, 100, 1000, 0.01], dtype=dtype).unsqueeze(1)
    gate, up = x.double().chunk(2, -1)
    close(native.silu_and_mul(x), torch.nn.functional.silu(gate) * up, dtype)


def test_other_tensors_are_not_taken() -> None:
    half, full = torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2)
    assert native.supports(full) and not native.supports(half) and not native.supports(full, full.bfloat16())
    assert not native.supports(torch.ones(2, 4).T)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (8, 4), (4, 1)])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "biased"])
def test_route(scoring: str, groups: int, kept: int, renormalize: bool) -> None:
    logits = normal(500, 64, dtype=torch.float32) * 2
    biased = scoring == "biased"
    bias = normal(64, dtype=torch.float32, seed=1) / 5 if biased else None
    weights, ids = native.route(
        logits,
        6,
        bias=bias,
        groups=groups,
        kept_groups=kept,
        scoring="sigmoid" if biased else scoring,
        renormalize=renormalize,
        scale=2.5,
    )
    scores = logits.double().softmax(-1) if scoring == "softmax" else logits.double().sigmoid()
    choice = scores + bias.double() if biased else scores
    by_group = choice.view(500, groups, -1)
    ranked = by_group.topk(2, -1).values.sum(-1) if biased else by_group.amax(-1)
    allowed = torch.zeros(500, groups).scatter(1, ranked.topk(kept, -1).indices, 1.0).bool()
    hidden = by_group.masked_fill(~allowed.unsqueeze(-1), -torch.inf if biased else 0.0).flatten(1)
    expected_ids = hidden.topk(6, -1).indices
    expected = scores.gather(1, expected_ids)
    if renormalize:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(ids.long(), expected_ids)
    torch.testing.assert_close(weights.double(), 2.5 * expected, rtol=1e-5, atol=1e-6)


def test_route_breaks_ties_by_the_lower_id() -> None:
    _, ids = native.route(torch.zeros(2, 16), 4, groups=4, kept_groups=2)
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
