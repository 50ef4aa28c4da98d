"""From the requests of a batch to one table row per token, written to the device before each forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sglang_moe_opt.engine.rows import FULL_ROW
from sglang_moe_opt.engine.state import EngineState, StepPlan, get_state
from sglang_moe_opt.hints import ResolvedHint
from sglang_moe_opt.layer_table import LayerTable

_PLAN = "_moe_opt_plan"


def forward_batch_init(result: Any, cls: type, batch: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``ForwardBatch.init_new``: attach the step's plan; an idle batch has none."""
    state = get_state()
    if state is not None and result.input_ids is not None and batch.reqs:
        setattr(result, _PLAN, plan_step(state, batch, len(result.input_ids)))


def forward_raw(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND ``ModelRunner._forward_raw``: write the step's rows on the forward stream, count what it did."""
    state = get_state()
    if state is None:
        return original(runner, forward_batch, *args, **kwargs)
    plan = getattr(forward_batch, _PLAN, None)
    metrics = state.metrics
    num_tokens = 0 if forward_batch.input_ids is None else len(forward_batch.input_ids)
    is_decode = forward_batch.forward_mode.is_decode()
    state.begin_step(plan, num_tokens, sample=metrics is not None and metrics.wants_sample(state.step.index))
    output = original(runner, forward_batch, *args, **kwargs)
    if metrics is not None:
        metrics.after_step(plan, is_decode)
    return output


def plan_step(state: EngineState, batch: Any, num_tokens: int) -> StepPlan:
    """Rows of the batch's tokens: a prompt token runs under its request's prefill schedule, a generated one under
    its decode schedule, also when a retracted request is computed anew. Under an auto profile that is the level of
    the moment, which only decode steps change. Where the step does not consolidate, a schedule that would runs plainly.
    """
    is_decode = batch.forward_mode.is_decode()
    if is_decode:
        state.auto.see(batch.reqs)
    joins = state.consolidator is not None and state.consolidator.covers(num_tokens, is_decode)
    tables: dict[int, LayerTable] = {}
    row_of: dict[int, tuple[int, int]] = {}
    pairs = []
    for req in batch.reqs:
        hint: ResolvedHint = req.moe_opt_hint
        pair = row_of.get(id(hint))
        if pair is None:
            pair = row_of[id(hint)] = _assign(state, hint, tables, joins)
        pairs.append(pair)
    if batch.forward_mode.is_extend_without_speculative():
        rows: list[int] = []
        counts: list[int] = []
        for req, (prefill, decode), start, length in zip(
            batch.reqs, pairs, batch.prefix_lens, batch.extend_lens, strict=True
        ):
            prompt = min(max(len(req.origin_input_ids) - start, 0), length)
            rows += (prefill, decode)
            counts += (prompt, length - prompt)
    else:
        rows = [decode for _, decode in pairs]
        counts = [num_tokens // len(rows)] * len(rows)
    return StepPlan(np.repeat(np.asarray(rows, np.int32), counts), tables)


def _assign(state: EngineState, hint: ResolvedHint, tables: dict[int, LayerTable], joins: bool) -> tuple[int, int]:
    pair = []
    decode = state.auto.decode_table(hint)
    for table in (hint.prefill, decode if joins else decode.plain):
        row = state.rows.assign(hint.profile, table)
        if row != FULL_ROW:
            tables[row] = table
        pair.append(row)
    return pair[0], pair[1]
