"""Routed experts on the CPU: kernel and loop against a dense sum over all experts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import experts, native

topk = pytest.importorskip("sglang.srt.layers.moe.topk")
upstream = pytest.importorskip("sglang.srt.layers.moe.fused_moe_native")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU SGLang's expert loop takes no CPU tensors"
)

HIDDEN, WIDTH, EXPERTS = 16, 12, 8
RUNNER = SimpleNamespace(
    apply_router_weight_on_input=False, activation="silu", gemm1_alpha=None, gemm1_clamp_limit=None
)


@pytest.fixture(params=["kernel", "loop"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two ways is taken."""
    if request.param == "kernel" and not native.ready():
        pytest.skip("no C++ compiler for the CPU kernels")
    if request.param == "loop":
        monkeypatch.setattr(native, "ready", lambda: False)
    return str(request.param)


def expert_layer(dtype: torch.dtype) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(4)
    return SimpleNamespace(
        num_experts=EXPERTS,
        w13_weight=(torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator) / 4).to(dtype),
        w2_weight=(torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) / 4).to(dtype),
    )


def dense(layer: SimpleNamespace, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """Every expert on every token, in float64, weighted by what was kept."""
    gate, up = torch.einsum("ti,eoi->teo", x.double(), layer.w13_weight.double()).chunk(2, dim=-1)
    outs = torch.einsum("teo,eio->tei", torch.nn.functional.silu(gate) * up, layer.w2_weight.double())
    spread = torch.zeros(len(x), EXPERTS, dtype=torch.float64)
    spread.scatter_add_(1, ids.clamp(min=0).long(), torch.where(ids >= 0, weights, 0).double())
    return torch.einsum("ne,nei->ni", spread, outs)


def routed(dropped: float, tokens: int = 11, slots: int = 4, ids_dtype: torch.dtype = torch.int32) -> Any:
    generator = torch.Generator().manual_seed(5)
    ids = torch.rand(tokens, EXPERTS, generator=generator).argsort(-1)[:, :slots].to(ids_dtype)
    weights = torch.rand(tokens, slots, generator=generator)
    drop = torch.rand(tokens, slots, generator=generator) < dropped
    if 0 < dropped < 1:
        drop[0], drop[1] = True, False
    return topk.StandardTopKOutput(weights.masked_fill(drop, 0.0), ids.masked_fill(drop, -1), torch.empty(0))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("dropped", [0.0, 0.3, 0.8, 1.0])
def test_dropped_slots_add_nothing(dropped: float, dtype: torch.dtype, atol: float, ids_dtype: torch.dtype) -> None:
    layer, output = expert_layer(dtype), routed(dropped, ids_dtype=ids_dtype)
    x = torch.randn(len(output.topk_ids), HIDDEN, generator=torch.Generator().manual_seed(6)).to(dtype)
    before = x.clone()
    result = experts.moe_forward_native(upstream.moe_forward_native, layer, x, output, RUNNER)
    assert result.dtype == dtype and result.shape == x.shape
    expected = dense(layer, x, output.topk_weights, output.topk_ids)
    torch.testing.assert_close(result.double(), expected, rtol=atol, atol=atol)
    assert torch.equal(x, before)


@pytest.mark.parametrize("path", ["loop"], indirect=True)
def test_the_loop_computes_only_kept_slots(path: str) -> None:
    rows = []

    def original(layer: Any, x: Tensor, output: Any, config: Any) -> Tensor:
        rows.append((len(x), tuple(output.topk_ids.shape), bool((output.topk_ids >= 0).all())))
        return x

    output = routed(0.8)
    kept = int((output.topk_ids >= 0).sum())
    experts.moe_forward_native(original, expert_layer(torch.float32), torch.ones(11, HIDDEN), output, RUNNER)
    assert rows == [(kept, (kept, 1), True)]


@pytest.mark.parametrize("path", ["kernel"], indirect=True)
@pytest.mark.parametrize(
    "change", [{"activation": "gelu"}, {"gemm1_alpha": 1.7}, {"apply_router_weight_on_input": True}]
)
def test_other_kinds_of_experts_go_to_upstream(path: str, change: dict[str, Any]) -> None:
    marker = torch.ones(1)
    config = SimpleNamespace(**{**vars(RUNNER), **change})
    got = experts.moe_forward_native(
        lambda *args: marker, expert_layer(torch.float32), torch.ones(11, HIDDEN), routed(0.0), config
    )
    assert got is marker
