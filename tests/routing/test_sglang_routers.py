"""Skipping to N experts equals SGLang's own router run with top-k N: group selection and renormalisation included."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_moe_opt.routing import MASS, Choice, RoutingTable
from sglang_moe_opt.routing.reference import apply_skip

topk = pytest.importorskip("sglang.srt.layers.moe.topk")

NUM_TOKENS, NUM_EXPERTS, TOP_K = 200, 64, 8
SCALE = 2.5
Router = Callable[[Tensor, Tensor, int, bool, int], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """SGLang compiles these routers on first call, which takes seconds for each shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


def biased_grouped(logits: Tensor, bias: Tensor, k: int, renormalize: bool, num_shared: int) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3: sigmoid, correction bias, 4 of 8 groups."""
    return topk.biased_grouped_topk_impl(logits, logits, bias, k, renormalize, 8, 4, num_shared, SCALE)


def grouped(logits: Tensor, bias: Tensor, k: int, renormalize: bool, num_shared: int) -> tuple[Tensor, Tensor]:
    """DeepSeek-V2: softmax, 3 of 8 groups."""
    return topk.grouped_topk_gpu(logits, logits, k, renormalize, 8, 3, num_shared, SCALE)


def ungrouped(logits: Tensor, bias: Tensor, k: int, renormalize: bool, num_shared: int) -> tuple[Tensor, Tensor]:
    """DeepSeek-V2-Lite: softmax, one group."""
    return topk.grouped_topk_gpu(logits, logits, k, renormalize, 1, 1, num_shared, SCALE)


def grouped_sigmoid(logits: Tensor, bias: Tensor, k: int, renormalize: bool, num_shared: int) -> tuple[Tensor, Tensor]:
    """Sigmoid without a bias, 3 of 8 groups."""
    return topk.grouped_topk_gpu(logits, logits, k, renormalize, 8, 3, num_shared, SCALE, scoring_func="sigmoid")


def biased_sqrtsoftplus(
    logits: Tensor, bias: Tensor, k: int, renormalize: bool, num_shared: int
) -> tuple[Tensor, Tensor]:
    """Square root of softplus with a correction bias, no groups."""
    return topk.biased_topk_impl(logits, logits, bias, k, renormalize, "sqrtsoftplus", num_shared, SCALE)


def biased_softmax(logits: Tensor, bias: Tensor, k: int, renormalize: bool, num_shared: int) -> tuple[Tensor, Tensor]:
    """Softmax with a correction bias on the probabilities; this router fuses no shared expert."""
    return topk.fused_topk_torch_native(logits, logits, k, renormalize, bias, "softmax")


ROUTERS = [
    (biased_grouped, "sigmoid", True, 0),
    (biased_grouped, "sigmoid", True, 1),
    (grouped, "softmax", False, 0),
    (grouped, "softmax", False, 1),
    (ungrouped, "softmax", False, 0),
    (grouped_sigmoid, "sigmoid", False, 0),
    (biased_sqrtsoftplus, "sqrtsoftplus", True, 0),
    (biased_softmax, "softmax", True, 0),
]


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("router", "scoring", "biased", "num_shared"), ROUTERS)
def test_na_equals_the_router_with_a_smaller_top_k(
    router: Router, scoring: str, biased: bool, num_shared: int, renormalize: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(NUM_TOKENS, NUM_EXPERTS, generator=generator)
    bias = 0.1 * torch.randn(NUM_EXPERTS, generator=generator)
    choice = Choice(logits, bias if biased else None, scoring)
    rows = torch.zeros(NUM_TOKENS, dtype=torch.int32)
    table = RoutingTable.allocate(1, 1, "cpu")
    for na in range(1, TOP_K + 1):
        rescale = MASS if renormalize else 1.0
        table.write_row(0, *(np.array([value]) for value in (na, 0.0, 1.0, 0, rescale)))
        weights, ids = router(logits, bias, TOP_K + num_shared, renormalize, num_shared)
        apply_skip(weights, ids, choice, rows, table, 0, num_shared=num_shared, dynamic=False)
        expected_weights, expected_ids = router(logits, bias, na + num_shared, renormalize, num_shared)
        torch.testing.assert_close(
            _by_expert(weights, ids), _by_expert(expected_weights, expected_ids), rtol=0, atol=1e-6
        )
        assert ((ids[:, :TOP_K] >= 0).sum(-1) == na).all()


def _by_expert(weights: Tensor, ids: Tensor) -> Tensor:
    """Spread slots over experts, so that their order does not matter; float32 [n, E + 1], dropped slots nowhere."""
    dense = torch.zeros(len(ids), NUM_EXPERTS + 2)
    spread = torch.where(ids >= 0, ids, NUM_EXPERTS + 1).long()
    return dense.scatter_add_(1, spread, weights)[:, : NUM_EXPERTS + 1]
