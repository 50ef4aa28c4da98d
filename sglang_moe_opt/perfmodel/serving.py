"""Continuous batching in a closed loop: from the times of steps to tokens per second, TTFT and TPOT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_moe_opt.fields import FieldError, is_int
from sglang_moe_opt.perfmodel.curve import Curve
from sglang_moe_opt.perfmodel.parameters import Parameters
from sglang_moe_opt.perfmodel.step import Regime, Setup, StepTime, step_time
from sglang_moe_opt.perfmodel.work import Batch, distinct_by_layer, weight_bytes


@dataclass(frozen=True)
class Workload:
    """Users who each send the next request when the last is answered. Raises FieldError.

    input_tokens, output_tokens: of every request. concurrency: users.
    """

    concurrency: int
    input_tokens: int = 1024
    output_tokens: int = 1024

    def __post_init__(self) -> None:
        for name, option in (
            ("concurrency", "--concurrency"),
            ("input_tokens", "--input"),
            ("output_tokens", "--output"),
        ):
            if not is_int(value := getattr(self, name)) or not 1 <= value <= 10**7:
                raise FieldError(option, value, "an integer from 1 to 10,000,000")


@dataclass(frozen=True)
class Point:
    """What a workload gets.

    Attributes:
        running: requests that run at a time; fewer than the users where the cache is too small for all.
        fits: whether the weights fit into the devices' memory; where not, the cache is not counted either.
        total_tok_s, output_tok_s: prompt and generated tokens, and generated ones, per second.
        ttft_s: mean time to first token. tpot_s: mean time per output token after the first, pauses included.
        decode_step_s: one decode step of the whole batch at the mean context.
        prefill_share: of the time.
        distinct_experts: that one MoE layer computes in a decode step, mean over the layers.
        time: of one round, in which every running request is answered once.
    """

    running: float
    fits: bool
    total_tok_s: float
    output_tok_s: float
    ttft_s: float
    tpot_s: float
    decode_step_s: float
    prefill_share: float
    distinct_experts: float
    time: StepTime

    @property
    def regime(self) -> Regime:
        return self.time.regime


def serve(setup: Setup, curve: Curve, parameters: Parameters, load: Workload) -> Point:
    """A closed loop of equal requests: they start together, and so they end together.

    Prompts come first, in steps of at most `chunk_tokens`, while nobody decodes; then all decode, and the first token
    is the prefill's. Numbers of steps may be broken, so that nothing jumps with the concurrency. Users beyond those
    whose cache has room wait for their turn.
    """
    room, fits = _room(setup, curve, load)
    running = min(float(load.concurrency), room)
    prompt = load.input_tokens
    tokens = min(running * prompt, float(setup.chunk_tokens))
    steps = running * prompt / tokens
    prefill = step_time(setup, curve, parameters, Batch(tokens, min(tokens / prompt, running), prompt / 2, True))
    decoding = Batch(running, running, prompt + load.output_tokens / 2, False)
    decode = step_time(setup, curve, parameters, decoding)
    cycle = prefill.times(steps) + decode.times(load.output_tokens - 1)
    own_steps = max(1.0, prompt / tokens)
    waiting_s = (load.concurrency / running - 1) * cycle.total_s
    ttft_s = prefill.total_s * (steps + own_steps) / 2
    output_tok_s = running * load.output_tokens / cycle.total_s
    return Point(
        running=running,
        fits=fits,
        total_tok_s=output_tok_s * (1 + prompt / load.output_tokens),
        output_tok_s=output_tok_s,
        ttft_s=ttft_s + waiting_s,
        tpot_s=(cycle.total_s - ttft_s) / max(1, load.output_tokens - 1),
        decode_step_s=decode.total_s,
        prefill_share=steps * prefill.total_s / cycle.total_s,
        distinct_experts=float(np.mean([e[1] for e in distinct_by_layer(curve, decoding, parameters.routing_skew)])),
        time=cycle,
    )


def _room(setup: Setup, curve: Curve, load: Workload) -> tuple[float, bool]:
    """Requests whose whole cache fits beside the weights, and whether the weights fit with one request at least."""
    free_bytes = setup.cache_and_weights_bytes - weight_bytes(setup.model, curve, setup.split)
    shards = min(setup.split.tp, setup.model.kv_shards)
    request_bytes = (load.input_tokens + load.output_tokens) * setup.model.kv_token_bytes / shards
    room = free_bytes / request_bytes
    return (room, True) if room >= 1 else (float(load.concurrency), False)
