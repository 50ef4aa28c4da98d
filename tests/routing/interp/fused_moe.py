"""SGLang's own fused MoE kernel, interpreted, on ids that our kernel has dropped; run by ``test_triton_kernel.py``."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start of the process", allow_module_level=True)
pytest.importorskip("sglang")

import torch
import torch.nn.functional as F
import triton.language as tl
from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
from torch import Tensor

from sglang_moe_opt.routing import triton_kernel
from tests.routing.cases import Case, Outcome, build, run
from tests.routing.oracle import judge

HIDDEN, INTERMEDIATE = 32, 16
BLOCKS = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32, "GROUP_SIZE_M": 1}
CASES = [
    Case(seed=5, num_tokens=12, num_slots=6, extra_experts=4, router=("softmax", False)),
    Case(seed=6, num_tokens=12, num_slots=8, num_shared=1, extra_experts=4, router=("sigmoid", True)),
    Case(seed=7, num_tokens=12, num_slots=8, extra_experts=4, router=("sqrtsoftplus", True), dynamic=False),
]


def moe_align_block_size(ids: Tensor, block_size: int, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stand-in for SGLang's CUDA op: slots sorted by expert, dropped slots (-1) in blocks of their own, first."""
    flat = ids.flatten()
    slots, experts = [], []
    for expert in range(-1, num_experts):
        mine = (flat == expert).nonzero().flatten().int()
        blocks = -(-len(mine) // block_size)
        slots.append(F.pad(mine, (0, blocks * block_size - len(mine)), value=flat.numel()))
        experts += [expert] * blocks
    sorted_slots = torch.cat(slots)
    return sorted_slots, torch.tensor(experts, dtype=torch.int32), torch.tensor([len(sorted_slots)], dtype=torch.int32)


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SGLang asks of a running CUDA server."""
    execution = SimpleNamespace(moe=SimpleNamespace(enable_fused_moe_sum_all_reduce=False))
    stand_ins = {
        "moe_align_block_size": moe_align_block_size,
        "get_exec": lambda: execution,
        "get_parallel": lambda: SimpleNamespace(tp_group=None),
        "use_symmetric_memory": lambda *args, **kwargs: contextlib.nullcontext(),
        "is_allocation_symmetric": lambda: False,
        "try_get_optimal_moe_config": lambda *args, **kwargs: (dict(BLOCKS), (None, None)),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(fused_moe, name, stand_in)


def skipped_routing(case: Case) -> tuple[Outcome, Outcome]:
    """Return what our kernel leaves and what the oracle says it must leave; shared experts follow the routed ones."""
    problem = build(case)
    problem.ids[:, case.num_slots :] = case.num_experts + torch.arange(case.num_shared)
    verdict = judge(problem, case.exact_weights)
    assert verdict.decided.all()
    assert (verdict.outcome.ids[:, : case.num_slots] < 0).all(dim=1).any(), "no row that drops everything"
    assert ((problem.ids >= 0) & (verdict.outcome.ids < 0)).any(), "no slot newly dropped"
    return run(triton_kernel.apply_skip, problem), verdict.outcome


def expert_weights(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [n, H], gate and up [E, 2I, H], down [E, H, I]."""
    generator = torch.Generator().manual_seed(case.seed)
    experts = case.num_experts + case.num_shared
    shapes = ((case.num_tokens, HIDDEN), (experts, 2 * INTERMEDIATE, HIDDEN), (experts, HIDDEN, INTERMEDIATE))
    hidden, gate_up, down = (torch.randn(shape, generator=generator) for shape in shapes)
    return hidden.to(dtype), (gate_up / HIDDEN**0.5).to(dtype), (down / INTERMEDIATE**0.5).to(dtype)


@pytest.mark.parametrize("filter_expert", [False, True])
@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("case", CASES)
def test_layer_equals_dense_experts_without_the_dropped(
    case: Case, scale: float | None, filter_expert: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 (the interpreter's bf16 matrix product is wrong); scratch buffers start as NaN."""
    skipped, expected = skipped_routing(case)
    hidden, gate_up, down = expert_weights(case, torch.float16)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    out = fused_moe.fused_experts_impl(
        hidden, gate_up, down, skipped.weights, skipped.ids, filter_expert=filter_expert, routed_scaling_factor=scale
    )
    monkeypatch.undo()

    dense = torch.zeros(case.num_tokens, HIDDEN)
    for token, slot in (expected.ids >= 0).nonzero().tolist():
        expert = expected.ids[token, slot]
        gate, up = (gate_up[expert].float() @ hidden[token].float()).chunk(2)
        dense[token] += expected.weights[token, slot] * (down[expert].float() @ (F.silu(gate) * up))
    torch.testing.assert_close(out.float(), dense * (scale or 1.0), rtol=0, atol=2e-2)


@pytest.mark.parametrize("case", CASES)
def test_one_product_in_fp32(case: Case) -> None:
    """Dropped slots are exactly 0, kept ones right to fp32."""
    skipped, expected = skipped_routing(case)
    hidden, gate_up, _ = expert_weights(case, torch.float32)
    num_slots = case.num_slots + case.num_shared
    product = torch.full((case.num_tokens, num_slots, 2 * INTERMEDIATE), torch.nan)
    aligned = moe_align_block_size(skipped.ids, BLOCKS["BLOCK_SIZE_M"], len(gate_up))
    fused_moe.invoke_fused_moe_kernel(
        hidden,
        gate_up,
        None,
        product,
        None,
        None,
        None,
        skipped.weights,
        skipped.ids,
        *aligned,
        True,
        num_slots,
        BLOCKS,
        compute_type=tl.float32,
        use_fp8_w8a8=False,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
        filter_expert=False,
    )
    dense = torch.einsum("nh,nkoh->nko", hidden, gate_up[expected.ids.clamp(min=0)]) * expected.weights[..., None]
    kept = expected.ids >= 0
    assert (product[~kept] == 0).all()
    torch.testing.assert_close(product[kept], dense[kept], rtol=1e-5, atol=1e-5)
