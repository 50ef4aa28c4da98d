"""lm-eval's completions model with a skip hint: batched, checked, resumable requests to a running server.

The requests are those of lm-eval's own `local-completions` (echo, log-probabilities, token ids) and so are the numbers.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from lm_eval import utils
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI

from eval.journal import Journal
from sglang_moe_opt.fields import show
from sglang_moe_opt.policy import CUSTOM

HEADER = "x-moe-skip"
PROMPT_COST = 24
"""A prompt costs about as much as so many tokens more: counted in progress, not in requests."""


class EndpointError(RuntimeError):
    """A server that cannot be reached or does not answer as it must; one line that names its URL."""


class Progress(Protocol):
    """Is told how much work the present task has, in tokens, and what of it is done."""

    def begin(self, total: int, known: int) -> None: ...

    def advance(self, done: int) -> None: ...


@dataclass(frozen=True)
class Limits:
    """How a server is asked.

    Attributes:
        concurrency: HTTP requests at a time.
        batch_prompts, batch_tokens: at most so many prompts and tokens in one HTTP request.
        timeout_s: for one HTTP request.
        patience_s: a request that keeps failing is given up after this time.
    """

    concurrency: int = 4
    batch_prompts: int = 64
    batch_tokens: int = 4096
    timeout_s: float = 600
    patience_s: float = 60


@dataclass(frozen=True)
class _Ask:
    """One prompt: its token ids, where its continuation begins (None to generate), and its key in the journal."""

    ids: list[int]
    start: int | None
    key: str

    @property
    def cost(self) -> int:
        return len(self.ids) + PROMPT_COST


@register_model("moe-opt-completions")
class SkippingCompletions(LocalCompletionsAPI):
    """The completions API of a server under one schedule.

    Args:
        url: the server's, without a path.
        hint: `moe_skip` of every request.
        journal: holds the answers there are and takes the new ones.
        progress: is told of the work done.
        limits: see there.
        options: of `LocalCompletionsAPI`: model, tokenizer, max_length.
    """

    def __init__(
        self, url: str, hint: Any, journal: Journal, progress: Progress, limits: Limits = Limits(), **options: Any
    ) -> None:
        # One request at a time would take lm-eval's other, synchronous way.
        super().__init__(
            base_url=f"{url}/v1/completions",
            tokenizer_backend="huggingface",
            num_concurrent=max(2, limits.concurrency),
            **options,
        )
        self._url = url
        self._hint = hint
        self._journal = journal
        self._progress = progress
        self._limits = limits

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As upstream, without its bar: the progress shown is ours."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts. As upstream, but the windows of all texts are asked for together."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *utils.make_disjoint_window(window)) for window in rolling]
            counts.append(len(windows) - before)
        values = iter(self._loglikelihood_tokens(windows))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def _create_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super()._create_payload(*args, **kwargs), "custom_params": {"moe_skip": self._hint}}

    async def get_batched_requests(
        self,
        requests: Sequence[list[int]],
        cache_keys: Sequence[Any],
        *,
        generate: bool = True,
        ctxlens: Sequence[int] | None = None,
        gen_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[list[Any]]:
        """All answers in the order of `requests`, as one batch; asks for those the journal lacks."""
        starts: Sequence[int | None] = ctxlens or [None] * len(requests)
        asks = [
            _Ask(ids, start, self._key(ids, start, gen_kwargs)) for ids, start in zip(requests, starts, strict=True)
        ]
        missing = {ask.key: ask for ask in asks if ask.key not in self._journal}.values()
        total = sum({ask.key: ask.cost for ask in asks}.values())
        self._progress.begin(total, total - sum(ask.cost for ask in missing))
        batches = self._batches(missing)
        timeout = aiohttp.ClientTimeout(total=self._limits.timeout_s)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as workers:
                for _ in range(self._limits.concurrency):
                    workers.create_task(self._work(session, batches, gen_kwargs))
        except* EndpointError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        return [[self._journal[ask.key] for ask in asks]]

    def _key(self, ids: list[int], start: int | None, gen_kwargs: dict[str, Any] | None) -> str:
        content = json.dumps([ids, start, gen_kwargs, self._hint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def _batches(self, asks: Any) -> Iterator[list[_Ask]]:
        batch: list[_Ask] = []
        tokens = 0
        for ask in asks:
            tokens += len(ask.ids)
            if batch and (len(batch) == self._limits.batch_prompts or tokens > self._limits.batch_tokens):
                yield batch
                batch, tokens = [], len(ask.ids)
            batch.append(ask)
        if batch:
            yield batch

    async def _work(
        self, session: aiohttp.ClientSession, batches: Iterator[list[_Ask]], gen_kwargs: dict[str, Any] | None
    ) -> None:
        """Take batches from the common supply until it is empty."""
        for batch in batches:
            payload = self._create_payload(
                [ask.ids for ask in batch],
                generate=batch[0].start is None,
                gen_kwargs=copy.deepcopy(gen_kwargs),
                seed=self._seed,
            )
            headers, body = await self._post(session, payload)
            answers = self._read(headers, body, batch)
            self._journal.add(dict(zip((ask.key for ask in batch), answers, strict=True)))
            self._progress.advance(sum(ask.cost for ask in batch))

    async def _post(self, session: aiohttp.ClientSession, payload: dict[str, Any]) -> tuple[Any, Any]:
        """Headers and body of the answer; waits out a busy or restarting server. Raises EndpointError."""
        pause, first_failure = 0.5, math.inf
        while True:
            try:
                async with session.post(self.base_url, json=payload, headers=self.header) as response:
                    if response.status == 200:
                        return response.headers, await response.json(content_type=None)
                    reason = f"HTTP {response.status}: {_message(await response.text())}"
                    if response.status < 500 and response.status != 429:
                        raise EndpointError(f"{self._url}: the server refused the request: {reason}")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
            first_failure = min(first_failure, time.monotonic())
            if time.monotonic() - first_failure + pause > self._limits.patience_s:
                raise EndpointError(f"{self._url}: no answer for {self._limits.patience_s:g} s: {reason}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10)

    def _read(self, headers: Any, body: Any, batch: list[_Ask]) -> list[Any]:
        """The answers of one response, checked. Raises EndpointError."""
        check_schedule(self._url, headers.get(HEADER), self._hint)
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(choices, list) or len(choices) != len(batch):
            raise EndpointError(f"{self._url}: expected {len(batch)} choices, got {show(choices)}")
        choices.sort(key=lambda choice: choice["index"])
        if batch[0].start is None:
            return list(self.parse_generations(body))
        for ask, choice in zip(batch, choices, strict=True):
            prompt_logprobs(self._url, choice, len(ask.ids))
        return [[value, greedy] for value, greedy in self.parse_logprobs(body, ctxlens=[ask.start for ask in batch])]


def expected_profile(hint: Any) -> str:
    """What the server must say it applied: a profile's name, or "custom"."""
    if isinstance(hint, dict):
        return str(hint.get("profile", CUSTOM))
    return str(hint)


def check_schedule(url: str, applied: str | None, hint: Any) -> None:
    """Raises EndpointError where the response's header does not name the schedule that was asked for."""
    expected = expected_profile(hint)
    if applied is None:
        raise EndpointError(
            f"{url}: the server ignores the hint (no {HEADER} header in its answer): every schedule would get the "
            "scores of one; serve with `moe-opt serve` or --moe-opt-config"
        )
    if applied != expected:
        raise EndpointError(f"{url}: {HEADER}: got {applied!r}, expected {expected!r} for the hint {show(hint)}")


def prompt_logprobs(url: str, choice: dict[str, Any], length: int) -> list[float]:
    """Log-probabilities of a prompt's tokens after the first, float [length - 1].

    Raises EndpointError where the answer lacks them or they are not numbers.
    """
    logprobs = choice.get("logprobs") or {}
    values = logprobs.get("token_logprobs")
    if not values:
        raise EndpointError(f"{url}: the answer has no log-probabilities of the prompt (echo with logprobs)")
    if len(values) != length + 1:
        raise EndpointError(
            f"{url}: {len(values)} log-probabilities for {length} prompt tokens and one generated: the server does not "
            "echo the prompt's"
        )
    if not all(isinstance(value, float | int) and math.isfinite(value) for value in values[1:]):
        raise EndpointError(f"{url}: log-probabilities that are not finite: {show(values[1:])}")
    return values[1:-1]


def _message(text: str) -> str:
    """What an error response says, as one line."""
    try:
        content = json.loads(text)
        content = content.get("error", content)
        text = str(content.get("message", content))
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300]
