"""The Triton kernel on a CUDA device, eager and under CUDA graphs, against the torch reference on the CPU."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sglang_moe_opt import routing
from sglang_moe_opt.routing import RoutingStats, RoutingTable, reference
from tests.routing.cases import (
    NUM_LAYERS,
    NUM_ROWS,
    ROUTERS,
    Case,
    Problem,
    assert_same,
    assert_unchanged_rows_are_identical,
    build,
    random_case,
    random_table,
    run,
    to_device,
)
from tests.routing.oracle import judge

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: no kernel is compiled"),
]

RULES = [field.name for field in dataclasses.fields(RoutingTable)]


def check(problem: Problem, exact_weights: bool) -> None:
    """The device's outcome equals the reference's."""
    decided = judge(problem, exact_weights).decided
    outcome = run(routing.apply_skip, to_device(problem, "cuda"))
    assert_same(outcome, run(reference.apply_skip, problem), decided)
    assert_unchanged_rows_are_identical(outcome, problem)


@pytest.mark.parametrize("seed", range(20))
def test_kernel_equals_the_reference(seed: int) -> None:
    """Ten random problems for each seed."""
    rng = random.Random(seed)
    for _ in range(10):
        case = random_case(rng)
        check(build(case), case.exact_weights)


@pytest.mark.parametrize("router", ROUTERS)
def test_deepseek_v3_sized_batches(router: tuple[str, bool]) -> None:
    """256 experts, 8 routed and 1 shared, from one token to a prefill chunk."""
    for num_tokens in (1, 7, 256, 3000):
        case = Case(seed=num_tokens, num_tokens=num_tokens, num_slots=8, num_shared=1, extra_experts=248, router=router)
        check(build(case), case.exact_weights)


def test_in_place_updates_do_not_race() -> None:
    """The same large launch, many times over, gives the same bits."""
    case = Case(seed=11, num_tokens=20_000, num_slots=8, extra_experts=56, router=("sigmoid", True))
    problem = to_device(build(case), "cuda")
    first = run(routing.apply_skip, problem)
    for _ in range(50):
        again = run(routing.apply_skip, problem)
        assert torch.equal(first.ids, again.ids)
        assert torch.equal(first.weights, again.weights)


@dataclasses.dataclass
class Captured:
    """All layers of one problem in one CUDA graph; every tensor of ``problem`` may be rewritten between replays."""

    problem: Problem
    weights: list[torch.Tensor]
    ids: list[torch.Tensor]
    graph: torch.cuda.CUDAGraph


def capture(case: Case) -> Captured:
    """Capture ``apply_skip`` for every layer, each on its own copy of the routing."""
    problem = to_device(build(case), "cuda")
    weights = [problem.weights.clone() for _ in range(NUM_LAYERS)]
    ids = [problem.ids.clone() for _ in range(NUM_LAYERS)]

    def step() -> None:
        for layer in range(NUM_LAYERS):
            weights[layer].copy_(problem.weights)
            ids[layer].copy_(problem.ids)
            routing.apply_skip(
                weights[layer],
                ids[layer],
                problem.choice,
                problem.rows,
                problem.table,
                layer,
                logical_ids=problem.logical_ids,
                num_shared=problem.num_shared,
                stats=problem.stats,
                dynamic=problem.dynamic,
            )

    return Captured(problem, weights, ids, _record(step))


def _record(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream, as capture requires, then capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def refill(captured: Captured, fresh: Problem) -> None:
    """Write another problem's routing and rows, and its table row by row, into the captured tensors."""
    problem = captured.problem
    problem.weights.copy_(fresh.weights)
    problem.ids.copy_(fresh.ids)
    problem.rows.copy_(fresh.rows)
    problem.choice.logits.copy_(fresh.choice.logits)
    if problem.choice.bias is not None:
        problem.choice.bias.copy_(fresh.choice.bias)
    if problem.logical_ids is not None:
        problem.logical_ids.copy_(fresh.logical_ids)
    for row in range(NUM_ROWS):
        problem.table.write_row(row, **{name: getattr(fresh.table, name)[row].numpy() for name in RULES})
    problem.stats.kept.copy_(fresh.stats.kept)
    problem.stats.touched.copy_(fresh.stats.touched)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("remapped", [False, True])
def test_replays_follow_rows_and_table(router: tuple[str, bool], remapped: bool) -> None:
    """One capture, many replays: schedules, their assignment and the routing change in between."""
    case = Case(seed=0, num_tokens=64, num_slots=8, num_shared=1, extra_experts=56, router=router, remapped=remapped)
    captured = capture(case)
    for seed in range(1, 9):
        fresh = build(dataclasses.replace(case, seed=seed))
        fresh.table = random_table(np.random.default_rng(seed), case.num_slots, dynamic=True)
        refill(captured, fresh)
        captured.graph.replay()
        torch.cuda.synchronize()

        stats = RoutingStats(fresh.stats.kept, fresh.stats.touched)
        all_decided = True
        for layer in range(NUM_LAYERS):
            problem = dataclasses.replace(fresh, layer=layer, stats=stats)
            decided = judge(problem, case.exact_weights).decided
            expected = run(reference.apply_skip, problem)
            assert torch.equal(captured.ids[layer].cpu()[decided], expected.ids[decided])
            torch.testing.assert_close(
                captured.weights[layer].cpu()[decided], expected.weights[decided], rtol=1e-5, atol=1e-7
            )
            stats = RoutingStats(expected.kept, expected.touched)
            all_decided &= bool(decided.all())
        if all_decided:
            assert torch.equal(captured.problem.stats.kept.cpu(), stats.kept)
            assert torch.equal(captured.problem.stats.touched.cpu(), stats.touched)


def test_one_compiled_kernel_serves_every_layer_and_batch_size() -> None:
    from sglang_moe_opt.routing.triton_kernel import apply_skip_kernel

    def launches() -> int:
        return sum(len(caches[0]) for caches in apply_skip_kernel.device_caches.values())

    table = RoutingTable.allocate(1, 40, "cuda")
    rows = torch.zeros(64, dtype=torch.int32, device="cuda")
    before = launches()
    for layer, num_tokens in ((0, 1), (1, 2), (16, 16), (39, 64)):
        logits = torch.randn(num_tokens, 160, device="cuda")
        weights, ids = logits.topk(6)
        choice = routing.Choice(logits, None, "softmax")
        routing.apply_skip(weights, ids, choice, rows, table, layer, dynamic=False)
        assert (ids == -1).all()
    assert launches() - before <= 1
