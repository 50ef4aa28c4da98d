"""Which steps consolidate, and what the routing hook then makes of SGLang's own routers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang_moe_opt.engine.batch import plan_step
from sglang_moe_opt.engine.consolidation import Consolidator
from sglang_moe_opt.engine.rows import FULL_ROW, NONE_ROW
from sglang_moe_opt.engine.state import EngineState, StepPlan, set_state
from sglang_moe_opt.engine.topk import post_process_topk_ids
from sglang_moe_opt.hints import resolve
from sglang_moe_opt.layer_table import MASS
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.policy import Consolidation, Policy
from tests.engine.stand_ins import decode_batch, extend_batch

V2 = MoEShape(5, (1, 2, 3, 4), 6, 64, 2, False, "softmax")
V3 = MoEShape(5, (1, 2, 3, 4), 8, 64, 1, True, "sigmoid")
LAYER = 3
ROUTERS: dict[MoEShape, dict[str, Any]] = {
    V2: {"num_expert_group": 1, "topk_group": 1, "renormalize": False, "routed_scaling_factor": 1.0},
    V3: {
        "num_expert_group": 8,
        "topk_group": 4,
        "renormalize": True,
        "correction_bias": 0.1 * torch.randn(64, generator=torch.Generator().manual_seed(2)),
        "routed_scaling_factor": 2.5,
    },
}


def policy(shape: MoEShape, **changed: Any) -> Policy:
    profiles = {
        "together": {"na": shape.top_k, "consolidate": 2},
        "fewer": {"na": 4, "consolidate": 2},
        "some": {"layers": [4, 2, 4, 4], "consolidate": 2},
        "fast": {"na": 2},
    }
    return Policy.from_object({"profiles": profiles, "consolidation": {"max_batch": 8, **changed}})


def make_state(shape: MoEShape = V2, always_on: bool = False, **changed: Any) -> EngineState:
    allowed = policy(shape, **changed)
    state = EngineState.create(shape, allowed, resolve(None, allowed, shape), "cpu", 64)
    state.always_on = always_on
    return state


def requests(state: EngineState, *names: str, prompt: int = 4) -> list[Any]:
    return [
        SimpleNamespace(moe_opt_hint=resolve(name, state.policy, state.shape), origin_input_ids=range(prompt))
        for name in names
    ]


def own_first(state: EngineState, plan: StepPlan) -> list[int]:
    """k0 in the first layer, token by token."""
    return [0 if row == FULL_ROW else int(plan.tables[row].own_first[0]) for row in plan.token_rows.tolist()]


# --- which steps ---


def test_decode_steps_consolidate_up_to_the_largest_batch() -> None:
    state = make_state()
    reqs = requests(state, "together", "full", "fast")
    assert own_first(state, plan_step(state, decode_batch(reqs), 3)) == [2, 0, 0]
    many = plan_step(state, decode_batch(requests(state, *["together", "fewer", "full"] * 3)), 9)
    assert own_first(state, many) == [0] * 9
    assert [1 if row == FULL_ROW else int(many.tables[row].na[0]) for row in many.token_rows[:3]] == [1, 4, 1]


def test_prompts_and_recomputed_answers_run_plainly() -> None:
    state = make_state()
    reqs = requests(state, "together", "fewer")
    plan = plan_step(state, extend_batch(reqs, [0, 0], [6, 4]), 10)  # the first was retracted after two tokens
    assert plan.token_rows[:6].tolist() == [FULL_ROW] * 6
    assert own_first(state, plan) == [0] * 10
    mixed = plan_step(state, extend_batch(reqs, [5, 0], [1, 4], mixed=True), 5)
    assert own_first(state, mixed) == [0] * 5


def test_an_auto_profile_may_choose_to_consolidate() -> None:
    auto = {"auto": {"levels": ["full", "together"], "speedup": {"together": {1: 1.0, 3: 1.0, 4: 1.5}}}}
    content = {"profiles": {"together": {"na": 6, "consolidate": 2}, "a": auto}, "consolidation": {"max_batch": 8}}
    allowed = Policy.from_object(content)
    state = EngineState.create(V2, allowed, resolve(None, allowed, V2), "cpu", 64)
    few = plan_step(state, decode_batch(requests(state, *["a"] * 3)), 3)
    assert own_first(state, few) == [0] * 3
    for count in (4, 9):
        plan = plan_step(state, decode_batch(requests(state, *["a"] * count)), count)
        assert own_first(state, plan) == [2 if count == 4 else 0] * count
    assert next(iter(state.auto.by_key.values())).controller.level == 1


def test_without_consolidation_in_the_policy_there_are_no_buffers() -> None:
    allowed = Policy.from_object({})
    state = EngineState.create(V2, allowed, resolve(None, allowed, V2), "cpu", 4)
    assert state.consolidator is None and state.stats.filled is None
    state.begin_step(None, 2)
    assert not state.step.consolidates


def test_what_a_step_is_told() -> None:
    state = make_state()
    for names, active, drops, consolidates in (
        (["full"], False, False, False),
        (["together", "full"], True, False, True),
        (["together", "fast"], True, True, True),
        (["fast", "full"], True, True, False),
        (["some", "some"], True, True, True),
    ):
        state.begin_step(plan_step(state, decode_batch(requests(state, *names)), len(names)), len(names))
        assert (state.step.active, state.step.drops, state.step.consolidates) == (active, drops, consolidates), names
        assert state.step.uniform is None and not state.step.dynamic


def test_apply_skip_leaves_consolidating_layers_alone() -> None:
    state = make_state(V3)
    plan = plan_step(state, decode_batch(requests(state, "some")), 1)
    state.begin_step(plan, 1)
    assert state.consolidator is not None
    row = plan.token_rows[0]
    assert state.table.na[row].tolist() == [8, 2, 8, 8]
    assert state.table.rescale[row].tolist() == [1, MASS, 1, 1]
    assert state.consolidator.table.k0[row].tolist() == [2, 0, 2, 2]
    assert state.consolidator.table.na[row].tolist() == [4, 2, 4, 4]
    assert state.consolidator.table.rescale[row].tolist() == [MASS] * 4


def test_a_row_that_changes_hands_forgets_its_consolidation() -> None:
    state = make_state()
    assert state.consolidator is not None
    plan = plan_step(state, decode_batch(requests(state, "together")), 1)
    state.begin_step(plan, 1)
    row = int(plan.token_rows[0])
    state.rows._pending[row] = resolve("fast", state.policy, V2).decode
    state.begin_step(None, 1)
    assert not state.consolidator.table.k0[row].any()


def test_a_graph_consolidates_its_padding_too() -> None:
    device = torch.device("cpu")
    for max_batch, sizes, longest in (
        (60, (1, 8, 64, 128), 64),
        (64, (64, 128), 64),
        (200, (64, 128), 200),
        (8, (), 8),
    ):
        made = Consolidator.create(Consolidation(max_batch=max_batch), 4, 2, 8, device, sizes)
        assert made.longest == longest
        assert made.covers(max_batch, True) and not made.covers(max_batch + 1, True) and not made.covers(1, False)


# --- the hook on SGLang's routers ---

topk = pytest.importorskip("sglang.srt.layers.moe.topk")
needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU SGLang's routers take no CPU tensors")


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hook, as the framework puts it around the original."""
    monkeypatch.setattr(topk, "_post_process_topk_ids", partial(post_process_topk_ids, topk._post_process_topk_ids))
    with torch.compiler.set_stance("force_eager"):
        yield


def select(
    shape: MoEShape, logits: torch.Tensor, num_shared: int = 0, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    config = topk.TopKConfig(
        top_k=shape.top_k + num_shared,
        torch_native=True,
        use_grouped_topk=True,
        shared_experts=topk.SharedExpertsConfig(num_fused_shared_experts=num_shared),
        **ROUTERS[shape],
    )
    output = topk.select_experts(torch.zeros(len(logits), 4), logits.clone(), config, layer_id=LAYER, **more)
    return output.topk_weights, output.topk_ids


def begin(state: EngineState, *names: str) -> None:
    set_state(state)
    state.begin_step(plan_step(state, decode_batch(requests(state, *names)), len(names)), len(names), sample=True)


LOGITS = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
NAMES = ("together", "full", "fewer", "fast", "together", "together", "fewer")


@needs_cpu
@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("always_on", [False, True])
@pytest.mark.parametrize("shape", [V2, V3])
def test_neighbours_are_as_without_and_the_step_touches_no_other_expert(shape: MoEShape, always_on: bool) -> None:
    set_state(None)
    weights, ids = select(shape, LOGITS)
    order = weights.argsort(-1, descending=True)
    if shape is V3:
        scores = LOGITS.sigmoid() + ROUTERS[V3]["correction_bias"]
        order = scores.gather(1, ids.long()).argsort(-1, descending=True)
    state = make_state(shape, always_on)
    begin(state, *NAMES)
    new_weights, new_ids = select(shape, LOGITS)
    joins = torch.tensor([name in ("together", "fewer") for name in NAMES])
    assert torch.equal(new_ids[1], ids[1]) and torch.equal(new_weights[1], weights[1])
    fast = new_ids[3][new_ids[3] >= 0]
    assert set(fast.tolist()) == set(ids[3][order[3, :2]].tolist())
    own = [set(row[o[:2]].tolist()) for row, o in zip(ids, order, strict=True)]
    allowed = set().union(*(own[i] for i in range(7) if joins[i]), ids[1].tolist(), fast.tolist())
    assert set(new_ids[new_ids >= 0].tolist()) == allowed
    for i in np.flatnonzero(joins.numpy()):
        kept = set(new_ids[i][new_ids[i] >= 0].tolist())
        assert own[i] <= kept
        assert len(kept) <= (4 if NAMES[i] == "fewer" else shape.top_k)
        if shape is V2:
            assert len(kept) == min(len(allowed), 4 if NAMES[i] == "fewer" else 6)
            torch.testing.assert_close(
                new_weights[i][new_ids[i] >= 0], LOGITS[i].softmax(-1)[new_ids[i][new_ids[i] >= 0].long()]
            )
        else:
            shares = LOGITS[i].sigmoid()[new_ids[i].clamp(min=0).long()] * (new_ids[i] >= 0)
            torch.testing.assert_close(new_weights[i] / new_weights[i].sum(), shares / shares.sum())
            torch.testing.assert_close(new_weights[i].sum(), weights[i].sum())
    assert state.stats.kept[:7].tolist() == (new_ids >= 0).sum(-1).tolist()
    assert set(state.stats.touched[2].nonzero().flatten().tolist()) == allowed
    assert state.stats.filled is not None
    filled = [len(set(new_ids[i].tolist()) - set(ids[i].tolist()) - {-1}) for i in range(7)]
    assert state.stats.filled[:7].tolist() == filled and sum(filled) > 0


@needs_cpu
@pytest.mark.usefixtures("hooked")
def test_padding_adds_no_expert() -> None:
    state = make_state()
    set_state(state)
    plan = plan_step(state, decode_batch(requests(state, *["together"] * 4)), 4)
    state.begin_step(plan, 4)
    _, alone = select(V2, LOGITS[:4])
    state.always_on = True
    state.begin_step(plan, 4)
    assert (state.token_rows[4:] == NONE_ROW).all()
    _, padded = select(V2, LOGITS)
    assert torch.equal(padded[:4], alone) and (padded[4:] == -1).all()


@needs_cpu
@pytest.mark.usefixtures("hooked")
def test_fused_shared_experts_stay() -> None:
    begin(make_state(), *NAMES)
    _, plain = select(V2, LOGITS)
    begin(make_state(), *NAMES)
    _, ids = select(V2, LOGITS, num_shared=1)
    assert (ids[:, -1] == 64).all()
    assert torch.equal(ids[:, :-1].sort(-1).values, plain.sort(-1).values)  # the router sorts where it fuses


@needs_cpu
@pytest.mark.usefixtures("hooked")
def test_redundant_experts_are_filled_by_their_physical_ids() -> None:
    physical = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    info = SimpleNamespace(ep_dispatch_algorithm="static", partial_logical_to_rank_dispatch_physical_map=physical)
    begin(make_state(V3), *NAMES)
    _, logical = select(V3, LOGITS)
    begin(make_state(V3), *NAMES)
    _, ids = select(V3, LOGITS, expert_location_dispatch_info=info)
    expected = torch.where(logical >= 0, physical[logical.clamp(min=0).long()], -1)
    assert torch.equal(ids.long(), expected)


@needs_cpu
@pytest.mark.usefixtures("hooked")
def test_a_longer_pass_than_any_decode_graph_is_skipped_plainly_and_counted() -> None:
    """A prefill pass on an accelerator: no row of it consolidates, so that the kernel would find nothing to do."""
    state = make_state(always_on=True)
    set_state(state)
    state.begin_step(None, 9, sample=True)
    assert state.step.consolidates
    _, ids = select(V2, torch.randn(9, 64))
    assert state.stats.kept[:9].tolist() == [6] * 9 and (ids >= 0).all()


@needs_cpu
@pytest.mark.usefixtures("hooked")
def test_max_experts_and_min_share_reach_the_rule() -> None:
    begin(make_state(max_experts=20), *["together"] * 7)
    _, capped = select(V2, LOGITS)
    assert len(set(capped[capped >= 0].tolist())) == 20
    begin(make_state(), *["together"] * 7)
    _, free = select(V2, LOGITS)
    assert len(set(free[free >= 0].tolist())) < 20
    begin(make_state(min_share=1.0), *["together"] * 7)
    assert (select(V2, LOGITS)[1] >= 0).sum() < (free >= 0).sum()


@needs_cpu
@pytest.mark.usefixtures("hooked")
def test_fills_may_leave_the_routers_groups_unless_the_policy_says_otherwise() -> None:
    set_state(None)
    _, routed = select(V3, LOGITS)
    chosen = [set((row // 8).tolist()) for row in routed]
    outside = []
    for changed in ({}, {"stay_in_groups": True}):
        begin(make_state(V3, **changed), *["together"] * 7)
        _, ids = select(V3, LOGITS)
        groups = [set((row[row >= 0] // 8).tolist()) for row in ids]
        outside.append(sum(len(mine - theirs) for mine, theirs in zip(groups, chosen, strict=True)))
    assert outside[0] > 0 == outside[1]
