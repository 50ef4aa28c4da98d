"""The training kernels compute what plain float32 operations do, up to bfloat16 rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.reference_models import kernels
from eval.reference_models.loss import linear_cross_entropy
from eval.reference_models.model import Linear

ROUNDING = 0.02
"""Relative error (Frobenius) allowed; bfloat16 has 8 bits."""


@pytest.fixture(autouse=True)
def built() -> None:
    if not kernels.available():
        pytest.skip("the training kernels need a processor with AVX-512 BF16, g++ and ninja")


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = ((actual.float() - expected).norm() / expected.norm()).item()
    assert error < ROUNDING


@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "experts", "k"), [(777, 192, 48, 64, 6), (64, 128, 64, 8, 3), (5, 48, 16, 16, 2)]
)
def test_experts(tokens: int, hidden: int, width: int, experts: int, k: int) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(experts, 2 * width, hidden) / hidden**0.5).requires_grad_()
    down = (torch.randn(experts, hidden, width) / width**0.5).requires_grad_()
    weights, indices = torch.randn(tokens, experts).softmax(-1).topk(k, -1)
    indices[:, 0] = indices[:, 0].clamp(max=experts - 2)  # some experts may stay without tokens
    weights = weights.detach().requires_grad_()
    x = torch.randn(tokens, hidden).bfloat16().requires_grad_()
    exact_x = x.detach().float().requires_grad_()
    expected = torch.zeros(tokens, hidden)
    for expert in range(experts):
        token, slot = (indices == expert).nonzero(as_tuple=True)
        gate, up = (exact_x[token] @ gate_up[expert].t()).chunk(2, -1)
        out = (F.silu(gate) * up * weights[token, slot, None]) @ down[expert].t()
        expected = expected.index_add(0, token, out)
    actual, _ = torch.ops.reference_models.experts_forward(x, weights, indices, gate_up, down)
    assert_close(actual, expected)
    grad = torch.randn(tokens, hidden)
    expected_grads = torch.autograd.grad(expected, [exact_x, weights, gate_up, down], grad)
    for mine, theirs in zip(
        torch.autograd.grad(actual, [x, weights, gate_up, down], grad), expected_grads, strict=True
    ):
        assert_close(mine, theirs)


@pytest.mark.parametrize(("batch", "length", "heads", "dim", "value_dim"), [(2, 192, 3, 48, 32), (1, 64, 2, 64, 64)])
def test_attention(batch: int, length: int, heads: int, dim: int, value_dim: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, length, heads, width).bfloat16().requires_grad_() for width in (dim, dim, value_dim))
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in exact), is_causal=True).transpose(1, 2)
    actual, _ = torch.ops.reference_models.attention_forward(q, k, v)
    assert_close(actual, expected)
    grad = torch.randn_like(expected).bfloat16()
    expected_grads = torch.autograd.grad(expected, exact, grad.float())
    for mine, theirs in zip(torch.autograd.grad(actual, [q, k, v], grad), expected_grads, strict=True):
        assert_close(mine, theirs)


def test_cross_entropy_and_its_gradient() -> None:
    torch.manual_seed(0)
    head = Linear(64, 512)
    x = torch.randn(3000, 64)
    targets = torch.randint(0, 512, (3000,))

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        head.compute_dtype = dtype
        head.zero_grad()
        rows = x.clone().requires_grad_()
        loss = linear_cross_entropy(rows, head, targets)
        (3 * loss).backward()
        assert rows.grad is not None and head.weight.grad is not None
        return loss.detach(), rows.grad, head.weight.grad

    for mine, theirs in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert_close(mine, theirs)
