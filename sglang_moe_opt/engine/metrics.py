"""Prometheus metrics on SGLang's ``/metrics``. Collectors are made late: SGLang first picks its multiprocess folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from sglang_moe_opt.engine.rows import FULL_ROW, NONE_ROW
from sglang_moe_opt.engine.state import EngineState, StepPlan, get_state
from sglang_moe_opt.hints import ResolvedHint

SAMPLE_EVERY = 8
"""Distinct experts are counted on one forward pass in so many."""
_EXPERT_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64, 96, 128, 160, 192, 224, 256, 384)


def metrics_enabled() -> bool:
    """SGLang sets the multiprocess folder before it starts its processes, and only with --enable-metrics."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class HttpMetrics:
    """Counters of the HTTP process.

    Attributes:
        requests: HTTP requests answered since the start, by profile.
        refused: HTTP requests refused since the start, by status.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()

    @cached_property
    def _requests(self) -> Any:
        from prometheus_client import Counter as Total

        return Total("sglang_moe_opt_requests", "Requests answered, by applied profile.", ("profile",))

    @cached_property
    def _refused(self) -> Any:
        from prometheus_client import Counter as Total

        return Total("sglang_moe_opt_refused_requests", "Requests refused, by HTTP status.", ("status",))

    @cached_property
    def _live(self) -> Any:
        from prometheus_client import Gauge

        return Gauge(
            "sglang_moe_opt_live_schedules", "Distinct custom schedules in flight.", multiprocess_mode="livemostrecent"
        )

    def record(self, hints: Iterable[ResolvedHint], status: int) -> None:
        """Count one HTTP response."""
        is_shown = metrics_enabled()
        if status >= 400:
            self.refused[status] += 1
            if is_shown:
                self._refused.labels(status).inc()
            return
        for hint in hints:
            self.requests[hint.profile] += 1
            if is_shown:
                self._requests.labels(hint.profile).inc()

    def live_schedules(self, number: int) -> None:
        """Show how many distinct custom schedules are in flight."""
        if metrics_enabled():
            self._live.set(number)


class StepMetrics:
    """Counters of the scheduler: tokens and slots by profile, distinct experts by layer and step.

    They are published with every sampled step and when the server falls idle. On an accelerator what was gathered on
    the device is read back with a delay of one flush, so that no step waits for it.
    """

    def __init__(self, state: EngineState) -> None:
        import torch
        from prometheus_client import Counter as Total
        from prometheus_client import Gauge, Histogram

        self._state = state
        self._tokens = Total("sglang_moe_opt_tokens", "Tokens computed.", ("profile", "phase"))
        self._kept = Total("sglang_moe_opt_slots_kept", "Routed expert slots computed.", ("profile",))
        self._filled = Total(
            "sglang_moe_opt_slots_filled",
            "Computed slots whose expert the router had not chosen, by consolidation.",
            ("profile",),
        )
        self._offered = Total("sglang_moe_opt_slots_offered", "Routed expert slots of the full model.", ("profile",))
        self._experts = Histogram(
            "sglang_moe_opt_unique_experts",
            "Distinct routed experts that one layer computes in one forward pass.",
            ("phase",),
            buckets=[b for b in _EXPERT_BUCKETS if b < state.shape.num_experts] + [state.shape.num_experts],
        )
        level = ("profile", "level")
        self._auto_tokens = Total("sglang_moe_opt_auto_tokens", "Tokens decoded by auto profiles, by level.", level)
        self._auto_switches = Total("sglang_moe_opt_auto_switches", "Changes of the level.", ("profile",))
        self._auto_level = Gauge(
            "sglang_moe_opt_auto_level",
            "Level of the last decode step, 0 the gentlest.",
            ("profile",),
            multiprocess_mode="livemostrecent",
        )
        rows, experts = state.table.na.shape[0], state.shape.num_experts
        self._kept_by_row = torch.zeros(rows, dtype=torch.int32, device=state.device)
        self._filled_by_row = torch.zeros_like(self._kept_by_row)
        self._layers_by_count = torch.zeros(2, experts + 1, dtype=torch.int32, device=state.device)
        self._in_flight: tuple[Any, ...] | None = None
        self._pending: Counter[tuple[Any, ...]] = Counter()  # by Prometheus counter and labels

    def wants_sample(self, index: int) -> bool:
        """Whether the distinct experts of this forward pass are counted."""
        return index % SAMPLE_EVERY == 0

    def after_step(self, plan: StepPlan | None, is_decode: bool) -> None:
        """Account for the forward pass that was just launched."""
        state, step = self._state, self._state.step
        if step.num_tokens == 0:
            return
        phase = "decode" if is_decode else "prefill"
        slots = len(state.shape.moe_layer_ids) * state.shape.top_k
        rows = {FULL_ROW: step.num_tokens} if plan is None else plan.tokens_by_row
        for row, tokens in rows.items():
            if row == NONE_ROW:
                continue
            label = state.rows.labels[row]
            self._pending[self._tokens, label, phase] += tokens
            self._pending[self._offered, label] += tokens * slots
            if not step.active:
                kept = slots if step.uniform is None else int(step.uniform.sum())
                self._pending[self._kept, label] += tokens * kept
        if step.active:
            self._count_kept(step.num_tokens)
        if step.sample:
            self._count_experts(is_decode)
            self.publish()
        if step.index % (4 * SAMPLE_EVERY) == 0 if state.always_on else step.active or step.sample:
            self._flush()

    def publish(self) -> None:
        """Add to Prometheus what the host has counted: a handful of writes that are not worth making in every step."""
        for (total, *labels), number in self._pending.items():
            total.labels(*labels).inc(number)
        self._pending.clear()
        self._publish_auto()

    def _publish_auto(self) -> None:
        for (profile, level), number in self._state.auto.take_tokens().items():
            self._auto_tokens.labels(profile, level).inc(number)
        for auto in self._state.auto.by_key.values():
            self._auto_level.labels(auto.profile).set(auto.controller.level)
            self._auto_switches.labels(auto.profile).inc(auto.take_switches())

    def _count_kept(self, num_tokens: int) -> None:
        stats = self._state.stats
        for by_row, counts in ((self._kept_by_row, stats.kept), (self._filled_by_row, stats.filled)):
            if counts is not None:
                by_row.index_add_(0, self._state.token_rows[:num_tokens], counts[:num_tokens])
                counts[:num_tokens].zero_()

    def _count_experts(self, is_decode: bool) -> None:
        import torch

        touched = self._state.stats.touched
        distinct = touched.sum(dim=1)
        self._layers_by_count[int(is_decode)].index_add_(0, distinct, torch.ones_like(distinct, dtype=torch.int32))

    def _flush(self) -> None:
        """Add finished counts to the counters; start reading the next ones back."""
        if self._in_flight is not None:
            event, *counts = self._in_flight
            if event is not None and not event.query():
                return
            self._publish(*(count.numpy() for count in counts))
            self._in_flight = None
        gathered = (self._kept_by_row, self._filled_by_row, self._layers_by_count)
        if not self._state.always_on:
            self._publish(*(count.numpy() for count in gathered))
        else:
            import torch

            copies = [t.to("cpu", non_blocking=True) for t in gathered]
            event = torch.cuda.Event()
            event.record()
            self._in_flight = (event, *copies)
        for count in gathered:
            count.zero_()

    def _publish(self, kept_by_row: np.ndarray, filled_by_row: np.ndarray, layers_by_count: np.ndarray) -> None:
        for total, by_row in ((self._kept, kept_by_row), (self._filled, filled_by_row)):
            for row in np.flatnonzero(by_row):
                total.labels(self._state.rows.labels[int(row)]).inc(int(by_row[row]))
        for phase, counts in zip(("prefill", "decode"), layers_by_count, strict=True):
            for distinct in np.flatnonzero(counts):
                for _ in range(int(counts[distinct])):
                    self._experts.labels(phase).observe(int(distinct))


def on_idle(result: None, reporter: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``SchedulerMetricsReporter.record_scheduler_idle``: publish what the last steps counted."""
    state = get_state()
    if state is not None and state.metrics is not None:
        state.metrics.publish()
