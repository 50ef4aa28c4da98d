"""The counters on ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from sglang_moe_opt.engine import metrics
from sglang_moe_opt.engine.metrics import HttpMetrics, StepMetrics
from sglang_moe_opt.engine.state import EngineState, StepPlan, set_state
from tests.engine.stand_ins import hint, make_state


@pytest.fixture(autouse=True)
def fresh_registry() -> Iterator[None]:
    """Collectors register themselves for the life of a process: take them out again."""
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"sglang_moe_opt_{name}", labels)


def run_step(state: EngineState, counters: StepMetrics, na: int | None, tokens: int, decode: bool = True) -> None:
    """One forward pass of ``tokens`` tokens, each layer keeping experts 0 to na - 1; None is the full model."""
    plan = None
    if na is not None:
        table = hint({"na": na}).decode
        row = state.rows.assign("fast", table)
        plan = StepPlan(np.full(tokens, row, np.int32), {row: table})
    state.begin_step(plan, tokens, sample=counters.wants_sample(state.step.index + 1))
    state.stats.touched[:, : na or 6] = 1
    if state.step.active:
        state.stats.kept[:tokens] += 4 * (na or 6)
    counters.after_step(plan, decode)


def test_tokens_and_slots_by_profile_and_phase() -> None:
    state = make_state()
    counters = StepMetrics(state)
    run_step(state, counters, na=2, tokens=5, decode=False)
    run_step(state, counters, na=2, tokens=3)
    run_step(state, counters, na=None, tokens=2)
    state.metrics = counters
    set_state(state)
    metrics.on_idle(None, None)
    metrics.on_idle(None, None)
    assert value("tokens_total", profile="fast", phase="prefill") == 5
    assert value("tokens_total", profile="fast", phase="decode") == 3
    assert value("tokens_total", profile="full", phase="decode") == 2
    assert value("slots_offered_total", profile="fast") == 8 * 4 * 6
    assert value("slots_kept_total", profile="fast") == 8 * 4 * 2
    assert value("slots_kept_total", profile="full") == value("slots_offered_total", profile="full") == 2 * 4 * 6
    assert not state.stats.kept.any()


def test_distinct_experts_are_sampled() -> None:
    state = make_state()
    counters = StepMetrics(state)
    assert [index for index in range(1, 25) if counters.wants_sample(index)] == [8, 16, 24]
    for _ in range(7):
        run_step(state, counters, na=2, tokens=1)
    assert value("unique_experts_count", phase="decode") is None
    run_step(state, counters, na=2, tokens=1)
    assert value("unique_experts_count", phase="decode") == 4  # once for each layer
    assert value("unique_experts_sum", phase="decode") == 4 * 2
    assert value("unique_experts_bucket", phase="decode", le="1.0") == 0
    assert value("unique_experts_bucket", phase="decode", le="2.0") == 4
    assert value("unique_experts_bucket", phase="decode", le="64.0") == 4


def test_an_empty_step_counts_nothing() -> None:
    state = make_state()
    counters = StepMetrics(state)
    state.begin_step(None, 0)
    counters.after_step(None, is_decode=True)
    assert value("tokens_total", profile="full", phase="decode") is None


def test_a_row_that_changed_hands_counts_for_its_new_profile() -> None:
    state = make_state()
    counters = StepMetrics(state)
    run_step(state, counters, na=2, tokens=1)
    row = next(row for row, label in state.rows.labels.items() if label == "fast")
    state.rows.labels[row] = "balanced"
    run_step(state, counters, na=2, tokens=1)
    counters.publish()
    assert value("slots_kept_total", profile="balanced") == 8


def test_http_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = HttpMetrics()
    counters.record([hint("fast")], 200)
    counters.live_schedules(3)
    assert not metrics.metrics_enabled()
    assert value("requests_total", profile="fast") is None
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    counters.record([hint("fast"), hint("full")], 200)
    counters.record([hint("fast")], 429)
    counters.live_schedules(3)
    assert value("requests_total", profile="fast") == value("requests_total", profile="full") == 1
    assert value("refused_requests_total", status="429") == 1
    assert value("live_schedules") == 3


def test_counts_are_read_without_copying_on_cpu() -> None:
    state = make_state()
    counters = StepMetrics(state)
    address = counters._kept_by_row.data_ptr()
    run_step(state, counters, na=1, tokens=1)
    assert counters._kept_by_row.data_ptr() == address
    assert torch.count_nonzero(counters._kept_by_row) == 0
