"""The routing hooks on SGLang's own routers and expert loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_moe_opt.engine.settings import CONFIG_ENV
from sglang_moe_opt.engine.state import EngineState, StepPlan, set_state
from sglang_moe_opt.engine.topk import bind_runner_backend, post_process_topk_ids, select_experts
from sglang_moe_opt.model_shape import MoEShape
from tests.engine.stand_ins import hint, make_state

topk = pytest.importorskip("sglang.srt.layers.moe.topk")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU SGLang's routers take no CPU tensors")

NUM_TOKENS, NUM_EXPERTS, TOP_K, LAYER = 40, 64, 8, 3
BIAS = 0.1 * torch.randn(NUM_EXPERTS, generator=torch.Generator().manual_seed(2))
LOGITS = torch.randn(NUM_TOKENS, NUM_EXPERTS, generator=torch.Generator().manual_seed(1))

V2 = {
    "use_grouped_topk": True,
    "num_expert_group": 1,
    "topk_group": 1,
    "renormalize": False,
    "routed_scaling_factor": 1.0,
}
V3 = {
    "use_grouped_topk": True,
    "num_expert_group": 8,
    "topk_group": 4,
    "renormalize": True,
    "correction_bias": BIAS,
    "routed_scaling_factor": 2.5,
}
PLAIN = {"renormalize": True}
ROUTERS = [pytest.param(V2, id="v2"), pytest.param(V3, id="v3"), pytest.param(PLAIN, id="plain")]


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """SGLang compiles these routers on first call, which takes seconds for each shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook, as the framework puts it around the original."""
    monkeypatch.setattr(topk, "_post_process_topk_ids", partial(post_process_topk_ids, topk._post_process_topk_ids))


def model(router: dict[str, Any]) -> MoEShape:
    biased = "correction_bias" in router
    scoring = "sigmoid" if biased else "softmax"
    return MoEShape(5, (1, 2, 3, 4), TOP_K, NUM_EXPERTS, 1, router["renormalize"], scoring)


def select(router: dict[str, Any], top_k: int, num_shared: int = 0, **more: Any) -> tuple[Tensor, Tensor]:
    """SGLang's routing of ``LOGITS``."""
    config = topk.TopKConfig(
        top_k=top_k + num_shared,
        torch_native=True,
        shared_experts=topk.SharedExpertsConfig(num_fused_shared_experts=num_shared),
        **router,
    )
    output = topk.select_experts(torch.zeros(NUM_TOKENS, 4), LOGITS.clone(), config, layer_id=LAYER, **more)
    return output.topk_weights, output.topk_ids


def start(router: dict[str, Any], *values: object, **changed: Any) -> EngineState:
    """Begin a step whose tokens take these hints in turn, dropping slots even where all tokens agree."""
    shape = model(router)
    state = make_state(shape, **changed)
    state._uniform = lambda plan: None
    tables = [hint(value, shape).decode for value in values]
    rows = [state.rows.assign("custom", table) for table in tables]
    token_rows = np.resize(np.asarray(rows, np.int32), NUM_TOKENS)
    plan = StepPlan(token_rows, {r: t for r, t in zip(rows, tables, strict=True) if not t.is_full})
    state.begin_step(plan, NUM_TOKENS)
    set_state(state)
    return state


def by_expert(weights: Tensor, ids: Tensor) -> Tensor:
    """Spread slots over experts, shared ones included: their order does not matter, dropped slots are nowhere."""
    dense = torch.zeros(len(ids), NUM_EXPERTS + 2)
    spread = torch.where(ids >= 0, ids, NUM_EXPERTS + 1).long()
    return dense.scatter_add_(1, spread, weights)[:, : NUM_EXPERTS + 1]


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize(
    ("router", "num_shared"),
    [(V2, 0), (V2, 1), (V3, 0), (V3, 1), (PLAIN, 0)],  # the plain router fuses no shared expert
    ids=["v2", "v2+shared", "v3", "v3+shared", "plain"],
)
def test_na_equals_the_router_with_a_smaller_top_k(router: dict[str, Any], num_shared: int) -> None:
    for na in range(1, TOP_K + 1):
        set_state(None)
        expected = by_expert(*select(router, na, num_shared))
        state = start(router, {"na": na})
        weights, ids = select(router, TOP_K, num_shared)
        assert ids.shape[1] == na + num_shared
        torch.testing.assert_close(by_expert(weights, ids), expected, rtol=0, atol=1e-6)
        # the last columns belong to the shared expert, whatever was dropped
        assert (ids[:, na:] == NUM_EXPERTS).all()
        assert state.stats.kept[:NUM_TOKENS].tolist() == [na if state.step.active else 0] * NUM_TOKENS


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("router", ROUTERS)
def test_where_all_tokens_agree_the_router_itself_is_asked_for_fewer(router: dict[str, Any]) -> None:
    shape = model(router)
    state = make_state(shape)
    table = hint({"na": 3}, shape).decode
    row = state.rows.assign("custom", table)
    state.begin_step(StepPlan(np.full(NUM_TOKENS, row, np.int32), {row: table}), NUM_TOKENS)
    set_state(state)
    config = topk.TopKConfig(
        top_k=TOP_K, torch_native=True, shared_experts=topk.SharedExpertsConfig(num_fused_shared_experts=0), **router
    )
    narrowed = select_experts(topk.select_experts, torch.zeros(NUM_TOKENS, 4), LOGITS.clone(), config, layer_id=LAYER)
    set_state(None)
    weights, ids = select(router, 3)
    assert not state.step.active
    assert config.top_k == TOP_K
    assert torch.equal(narrowed.topk_ids, ids)
    assert torch.equal(narrowed.topk_weights, weights)


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("always_on", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_each_token_follows_its_own_schedule(router: dict[str, Any], always_on: bool) -> None:
    expected = torch.empty(NUM_TOKENS, NUM_EXPERTS + 1)
    for token, na in enumerate((1, 3, TOP_K)):
        expected[token::3] = by_expert(*select(router, na))[token::3]
    start(router, {"na": 1}, {"na": 3}, "full", always_on=always_on)
    weights, ids = select(router, TOP_K)
    assert ids.shape[1] == TOP_K  # a full token leaves nothing to cut off
    torch.testing.assert_close(by_expert(weights, ids), expected, rtol=0, atol=1e-6)
    assert (weights[ids < 0] == 0).all()


@pytest.mark.usefixtures("hooked")
def test_layers_are_looked_up_by_their_place_among_the_moe_layers() -> None:
    start(V2, {"layers": [1, 2, 3, 4]})
    assert (select(V2, TOP_K)[1] >= 0).sum(-1).tolist() == [3] * NUM_TOKENS


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("router", ROUTERS)
def test_padded_rows_stay_padded(router: dict[str, Any]) -> None:
    real = torch.tensor(NUM_TOKENS - 5)
    state = start(router, {"na": 3}, "full")
    weights, ids = select(router, TOP_K, num_token_non_padded=real)
    assert (ids[-5:] == -1).all()
    assert (ids[:-5] >= 0).sum(-1).tolist() == ([3, TOP_K] * NUM_TOKENS)[: NUM_TOKENS - 5]
    assert (state.stats.kept[NUM_TOKENS - 5 : NUM_TOKENS] == 0).all()
    assert torch.isfinite(weights).all()


@pytest.mark.usefixtures("hooked")
def test_redundant_experts_are_ranked_by_logical_and_dropped_by_physical_id() -> None:
    physical = torch.randperm(NUM_EXPERTS, generator=torch.Generator().manual_seed(3))
    info = SimpleNamespace(ep_dispatch_algorithm="static", partial_logical_to_rank_dispatch_physical_map=physical)
    logical_weights, logical_ids = select(V3, 3)
    start(V3, {"na": 3}, "full")
    weights, ids = select(V3, TOP_K, expert_location_dispatch_info=info)
    expected = by_expert(logical_weights, physical[logical_ids.long()])
    torch.testing.assert_close(by_expert(weights, ids)[::2], expected[::2], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("hooked")
def test_na_0_leaves_one_column_that_nobody_uses() -> None:
    start(V2, {"na": 0})
    weights, ids = select(V2, TOP_K)
    assert ids.tolist() == [[-1]] * NUM_TOKENS
    assert not weights.any()
    start(V2, {"na": 0})
    weights, ids = select(V2, TOP_K, num_shared=1)
    assert (ids[:, -1] == NUM_EXPERTS).all() and (ids[:, :-1] == -1).all()


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("router", ROUTERS)
def test_the_full_model_is_untouched(router: dict[str, Any]) -> None:
    set_state(None)
    expected_weights, expected_ids = select(router, TOP_K)
    for state in (start(router, "full"), start(router, "full", always_on=True)):
        set_state(state)
        weights, ids = select(router, TOP_K)
        assert torch.equal(weights, expected_weights) and torch.equal(ids, expected_ids)


def call(original: Callable[..., Any], layer_id: int = LAYER, num_shared: int = 0, logits: Tensor = LOGITS) -> Any:
    """The hook by itself."""
    config = SimpleNamespace(
        num_shared_topk_slots=num_shared,
        correction_bias=None,
        use_grouped_topk=False,
        scoring_func="softmax",
        apply_routed_scaling_factor_on_output=False,
    )
    ids = torch.arange(TOP_K + num_shared).repeat(NUM_TOKENS, 1)
    return post_process_topk_ids(original, ids, torch.ones(ids.shape), config, logits, layer_id)


def passing(ids: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    return ids, weights, ids


def test_what_the_recorder_sees_is_what_is_computed() -> None:
    start(V2, {"na": 2})
    ids, _, recorded = call(passing, num_shared=1)
    assert torch.equal(recorded, ids[:, :-1]) and recorded.shape[1] == 2
    assert call(lambda ids, weights, *args: (ids, weights, None))[2] is None


def test_a_layer_that_is_not_the_models_is_left_alone() -> None:
    start(V2, {"na": 2})
    for layer_id in (0, 5):  # a dense layer, a draft's layer
        assert call(passing, layer_id)[0].shape[1] == TOP_K


def test_a_router_that_hides_its_logits_is_refused() -> None:
    start(V2, {"na": 2})
    with pytest.raises(RuntimeError, match=r"layer 3 routes inside a fused kernel.*--moe-runner-backend triton"):
        call(passing, logits=LOGITS[:1])


def test_a_full_step_counts_its_experts_where_a_sample_is_wanted() -> None:
    state = make_state(model(V2))
    set_state(state)
    state.begin_step(None, NUM_TOKENS, sample=True)
    call(passing, num_shared=1)
    assert state.stats.touched[2].nonzero().flatten().tolist() == list(range(TOP_K))
    assert state.stats.touched.sum() == TOP_K


# --- binding ---


STANDARD, BYPASSED = topk.TopKOutputFormat.STANDARD, topk.TopKOutputFormat.BYPASSED


def bound(backend: str | None, output_format: Any) -> SimpleNamespace:
    """A TopK that is bound to a backend."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    runner_backend = None if backend is None else MoeRunnerBackend(backend)
    return SimpleNamespace(topk_config=SimpleNamespace(output_format=output_format, runner_backend=runner_backend))


def test_backends_that_skip_dropped_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, "builtin")
    for backend in (None, "auto", "triton", "deep_gemm"):
        for output_format in (None, STANDARD):
            bind_runner_backend(None, bound(backend, output_format))


@pytest.mark.parametrize(
    ("backend", "output_format"), [("flashinfer_trtllm", BYPASSED), ("auto", BYPASSED), ("cutlass", STANDARD)]
)
def test_other_backends_are_refused_where_skipping_is_configured(
    monkeypatch: pytest.MonkeyPatch, backend: str, output_format: Any
) -> None:
    bind_runner_backend(None, bound(backend, output_format))
    monkeypatch.setenv(CONFIG_ENV, "builtin")
    with pytest.raises(RuntimeError, match=rf"backend {backend} routes in its own kernel.*--moe-runner-backend triton"):
        bind_runner_backend(None, bound(backend, output_format))
