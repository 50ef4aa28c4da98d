"""Before any task: does this server give the log-probabilities that scores are made of, and does it honour hints?

A server without echo log-probabilities, or with constant ones, gives chance scores silently; one that ignores the hint
gives every schedule the scores of the full model. Both are refused here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from eval.endpoint import HEADER, EndpointError, check_schedule, prompt_logprobs
from eval.results import ScheduleEntry
from eval.served import ServedModel
from sglang_moe_opt.plan import PLAN_KEY
from sglang_moe_opt.policy import Policy
from sglang_moe_opt.schedule import FULL

MEAN_NA_HEADER: Final = "x-moe-skip-mean-na"
TEXT: Final = (
    "Once upon a time there was a little girl who lived in a house near the river. One day she went out to play with "
    "her friends. They ran and laughed in the sun until it was time to go home."
)
"""Any trained model finds some of these words much likelier than others."""
TOLERANCES: Final = {"float32": 1e-3, "bfloat16": 0.75, "float16": 0.3}
"""Largest difference from Hugging Face's fp32 allowed at a token of TEXT, in nats; half of it on average for fp32, a
tenth otherwise: in 16 bits near-tied experts swap, which moves single tokens by tenths of a nat but not the mean."""
PRUNED_SHARE: Final = 5
"""Under a plan the average may be a fifth in 16 bits: mini-v3 with a random half of its experts differs by 0.083 nats.
A plan that is not applied moves the average by 0.3 nats and more on the mini models."""
PRUNED_MOST: Final = 2
"""Under a plan a single token may differ by twice as much in 16 bits: a model with a hole finds more of the text
unlikely, and an expert that swaps moves an unlikely token far. mini-v3 with the half of highest soft count: 0.873 nats
at one token, 0.088 on average."""
_REFERENCE_BYTES: Final = 6 << 30
"""Larger checkpoints are not loaded beside the server to compare with."""


@dataclass(frozen=True)
class Canary:
    """What was found.

    Attributes:
        tokens: log-probabilities compared.
        max_difference, mean_difference: to Hugging Face in fp32, under the same plan, nats; None where `skipped` says
            why not compared.
        skipped: why there was no comparison.
        hint_effect: mean absolute change of a token's log-probability under the reduced schedule, nats; None where
            the schedules to be run are all full.
    """

    tokens: int
    max_difference: float | None
    mean_difference: float | None
    skipped: str | None
    hint_effect: float | None

    def __str__(self) -> str:
        compared = f"not compared with Hugging Face: {self.skipped}"
        if self.max_difference is not None:
            compared = (
                f"differ from Hugging Face fp32 by {self.max_difference:.1e} at most, "
                f"{self.mean_difference:.1e} on average"
            )
        hint = "" if self.hint_effect is None else f"; the hint moves them by {self.hint_effect:.2g} on average"
        return f"log-probabilities of {self.tokens} tokens {compared}{hint}"


def check_server(served: ServedModel, schedules: Sequence[ScheduleEntry], policy: Policy) -> Canary:
    """Ask for a known text under `full`, under a reduced schedule and under each that is to be run.

    Raises:
        EndpointError: the server cannot be evaluated; the message says why and what to do.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(served.tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    with httpx.Client(timeout=300, trust_env=False) as client:
        full = _ask(client, served, ids, FULL)[0]
        _check_varied(served.url, full)
        effect = _check_hint(client, served, ids, full, schedules, policy)
    largest, mean, skipped = _compare(served, ids, full)
    return Canary(len(full), largest, mean, skipped, effect)


def _ask(client: httpx.Client, served: ServedModel, ids: list[int], hint: Any) -> tuple[list[float], httpx.Headers]:
    """Log-probabilities of the ids after the first, and the response's headers. Raises EndpointError."""
    payload = {
        "model": served.name,
        "prompt": [ids],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
        "custom_params": {"moe_skip": hint},
    }
    try:
        response = client.post(f"{served.url}/v1/completions", json=payload)
        body = response.json()
        if response.status_code != 200:
            raise EndpointError(f"{served.url}: HTTP {response.status_code}: {body.get('message', body)}")
        choice = body["choices"][0]
    except (httpx.HTTPError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise EndpointError(f"{served.url}: /v1/completions: no usable answer ({error!r})") from None
    check_schedule(served.url, response.headers.get(HEADER), hint)
    return prompt_logprobs(served.url, choice, len(ids)), response.headers


def _check_varied(url: str, values: list[float]) -> None:
    if max(values) - min(values) < 0.1 or max(values) > 1e-6:
        raise EndpointError(
            f"{url}: the log-probabilities of ordinary text run from {min(values):.4g} to {max(values):.4g}: "
            "these are not a model's, every score would be chance"
        )


def _check_hint(
    client: httpx.Client,
    served: ServedModel,
    ids: list[int],
    full: list[float],
    schedules: Sequence[ScheduleEntry],
    policy: Policy,
) -> float | None:
    """Check that hints change the result and that the server expands schedules as we do."""
    effects = []
    for schedule in schedules:
        values, headers = _ask(client, served, ids, schedule.hint)
        applied = headers.get(MEAN_NA_HEADER, "").partition("/")[0]
        if applied != f"{schedule.mean_na:g}":
            raise EndpointError(
                f"{served.url}: schedule {schedule.label}: the server runs it with mean na {applied or 'unknown'}, the "
                f"policy read here gives {schedule.mean_na:g}: name the server's policy file with --config"
            )
        effects.append((schedule.mean_na, _mean_difference(values, full)))
    top_k = served.shape.top_k
    if policy.allow_custom and top_k > max(1, policy.min_na):
        least = max(1, policy.min_na)
        effects.append((least, _mean_difference(_ask(client, served, ids, {"na": least})[0], full)))
    reduced = [pair for pair in effects if pair[0] < top_k]
    if not reduced:
        return None
    mean_na, effect = min(reduced)
    if effect < 1e-6:
        raise EndpointError(
            f"{served.url}: the server ignores the hint: with {mean_na:g} of {top_k} experts every log-probability is "
            "that of the full model"
        )
    return effect


def _mean_difference(values: list[float], others: list[float]) -> float:
    return math.fsum(abs(a - b) for a, b in zip(values, others, strict=True)) / len(values)


def _compare(served: ServedModel, ids: list[int], full: list[float]) -> tuple[float | None, float | None, str | None]:
    """Largest and mean difference to Hugging Face on the same weights, or why there is none. Raises EndpointError."""
    reference, skipped = _reference(served, ids)
    if reference is None:
        return None, None, skipped
    largest = max(abs(a - b) for a, b in zip(full, reference, strict=True))
    mean = _mean_difference(full, reference)
    dtype = served.dtype if served.dtype in TOLERANCES else str(served.config.get("dtype") or "bfloat16")
    allowed = TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
    share = 2 if dtype == "float32" else PRUNED_SHARE if served.plan else 10
    limit = allowed / share
    if served.plan and dtype != "float32":
        allowed *= PRUNED_MOST
    if largest > allowed or mean > limit:
        under = f" under the plan {served.plan.name}" if served.plan else ""
        raise EndpointError(
            f"{served.url}: log-probabilities differ from Hugging Face's on the same weights{under} by {largest:.3g} "
            f"at most and {mean:.3g} on average; allowed for {dtype}: {allowed:g} at most, {limit:g} on average"
        )
    return largest, mean, None


def _reference(served: ServedModel, ids: list[int]) -> tuple[list[float] | None, str | None]:
    """What the log-probabilities should be, or why that is not known."""
    if served.folder is None:
        return None, f"no checkpoint to read at {served.path}"
    size = sum(file.stat().st_size for file in served.folder.glob("*.safetensors"))
    if size == 0:
        return None, f"no weights to read at {served.path}"
    if size > _REFERENCE_BYTES:
        return None, f"{size / 1e9:.1f} GB of weights, at most {_REFERENCE_BYTES / 1e9:.1f} GB are loaded"
    if "quantization_config" in served.config:
        return None, "quantized weights"
    if PLAN_KEY in served.config:
        return None, "weights stored without the plan's removed experts, which only the server can read"
    from eval.exact import pruned_logprobs, whole_logprobs

    if served.plan is None or served.plan.is_exported:  # an exported checkpoint is a whole, smaller model
        return whole_logprobs(served.folder, ids), None
    try:
        served.plan.plan.check_weights(served.plan.file)
        return pruned_logprobs(served.folder, served.plan.plan, served.plan.sidecar, ids), None
    except ValueError as error:
        return None, str(error)
