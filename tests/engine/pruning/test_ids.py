"""Expert ids of the whole model and slots of a pruned one, on SGLang's own routers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_moe_opt.engine.pruning.ids import attach, capture_routed_experts, slots_of, to_originals, to_slots
from sglang_moe_opt.engine.pruning.model import _mask_logits
from sglang_moe_opt.engine.state import set_state
from sglang_moe_opt.engine.topk import post_process_topk_ids
from sglang_moe_opt.model_shape import MoEShape
from tests.engine.stand_ins import make_state

topk = pytest.importorskip("sglang.srt.layers.moe.topk")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU SGLang's routers take no CPU tensors")

TOKENS, EXPERTS, TOP_K, LAYER = 50, 16, 3, 1
LOGITS = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1))
BIAS = 0.3 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(2))
EVEN = (0, 2, 5, 7, 8, 10, 13, 14)  # two of each group of four
UNEVEN = (0, 1, 2, 3, 4, 6, 9, 11, 13, 15)  # 4, 2, 2, 2
GROUPS = {"use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2}
V3 = {**GROUPS, "renormalize": True, "correction_bias": BIAS}
V2 = {**GROUPS, "renormalize": False}


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(topk, "_post_process_topk_ids", partial(post_process_topk_ids, topk._post_process_topk_ids))
    with torch.compiler.set_stance("force_eager"):
        yield


def config(router: dict[str, Any], num_shared: int = 0) -> Any:
    return topk.TopKConfig(
        top_k=TOP_K + num_shared,
        torch_native=True,
        shared_experts=topk.SharedExpertsConfig(num_fused_shared_experts=num_shared),
        routed_scaling_factor=1.0,
        **router,
    )


def route(settings: Any, logits: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    output = topk.select_experts(torch.zeros(TOKENS, 4), logits, settings, layer_id=LAYER, **more)
    return output.topk_weights, output.topk_ids


def dense(weights: Tensor, ids: Tensor) -> Tensor:
    """Weights by expert: the order of slots does not matter."""
    return torch.zeros(TOKENS, EXPERTS + 1).scatter_(1, ids.long(), weights)


def masked_reference(router: dict[str, Any], kept: tuple[int, ...]) -> Tensor:
    """The whole model's router with the removed experts' logits, and choice scores, at -inf; by original id."""
    removed = torch.tensor([e for e in range(EXPERTS) if e not in kept])
    logits = LOGITS.index_fill(1, removed, float("-inf"))
    if "correction_bias" in router:
        router = {**router, "correction_bias": BIAS.index_fill(0, removed, float("-inf"))}
    return dense(*route(config(router), logits))


@pytest.mark.parametrize("router", [V2, V3], ids=["v2", "v3"])
def test_a_shrunk_router_routes_as_a_masked_one(router: dict[str, Any]) -> None:
    settings = config(router | ({"correction_bias": BIAS[list(EVEN)]} if "correction_bias" in router else {}))
    attach(settings, EVEN, EXPERTS, 0, "shrink")
    weights, ids = route(settings, LOGITS[:, list(EVEN)])
    assert int(ids.max()) < len(EVEN)  # slots, as the experts lie in memory
    expected = masked_reference(router, EVEN)
    torch.testing.assert_close(dense(weights, to_originals(settings, ids)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kept", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("router", [V2, V3], ids=["v2", "v3"])
def test_a_masked_router_gives_slots(router: dict[str, Any], kept: tuple[int, ...]) -> None:
    removed = torch.tensor([e for e in range(EXPERTS) if e not in kept])
    biased = "correction_bias" in router
    settings = config(router | ({"correction_bias": BIAS.index_fill(0, removed, float("-inf"))} if biased else {}))
    attach(settings, kept, EXPERTS, 0, "mask")
    logits = LOGITS.clone() if biased else _mask_logits(settings)(None, None, LOGITS.clone())
    weights, slots = route(settings, logits)
    originals = torch.tensor(kept)[slots.long()]
    torch.testing.assert_close(dense(weights, originals), masked_reference(router, kept), rtol=0, atol=1e-6)
    assert slots.dtype is torch.int32


def test_dropped_and_padded_slots_stay_minus_one() -> None:
    settings = config(V3 | {"correction_bias": BIAS.index_fill(0, torch.tensor([5]), float("-inf"))})
    attach(settings, tuple(e for e in range(EXPERTS) if e != 5), EXPERTS, 0, "mask")
    _, ids = route(settings, LOGITS.clone(), num_token_non_padded=torch.tensor(TOKENS - 4))
    assert (ids[-4:] == -1).all() and (ids[:-4] >= 0).all()


def test_fused_shared_experts_follow_the_kept_ones() -> None:
    whole = torch.arange(EXPERTS)
    settings = SimpleNamespace()
    attach(settings, UNEVEN, EXPERTS, 1, "mask")
    slots = slots_of(settings)
    assert slots is not None and slots.tolist()[EXPERTS:] == [len(UNEVEN), -1]
    ids = torch.cat([whole[list(UNEVEN)], torch.tensor([EXPERTS, -1])])[None]
    assert to_slots(settings, ids).tolist() == [[*range(len(UNEVEN) + 1), -1]]
    shrunk = SimpleNamespace()
    attach(shrunk, UNEVEN, EXPERTS, 1, "shrink")
    assert to_originals(shrunk, to_slots(settings, ids)).tolist() == ids.tolist()


def test_what_is_recorded_are_the_whole_models_ids() -> None:
    set_state(make_state(MoEShape(3, (1, 2), TOP_K, EXPERTS, 1, True, "sigmoid")))
    chosen = torch.tensor([[0, 4, -1]])

    def original(ids: Tensor, weights: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return ids, weights, ids

    for mode, ids, slots in (("shrink", chosen, chosen), ("mask", torch.tensor([[0, 8, -1]]), chosen)):
        settings = SimpleNamespace(num_shared_topk_slots=0)
        attach(settings, EVEN, EXPERTS, 0, mode)
        result, _, recorded = post_process_topk_ids(original, ids, torch.ones(1, 3), settings, LOGITS[:1], LAYER)
        assert result.tolist() == slots.tolist()
        assert recorded is not None and recorded.tolist() == [[0, 8, -1]]
        assert capture_routed_experts(settings, LAYER, ids)[0][2].tolist() == [[0, 8, -1]]


def test_a_whole_layer_is_left_alone() -> None:
    ids = torch.tensor([[3, 1]])
    settings = SimpleNamespace()
    assert to_slots(settings, ids) is ids and to_originals(settings, ids) is ids and slots_of(settings) is None
