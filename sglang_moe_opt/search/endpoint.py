"""Asks a server what text costs under schedules: nats of every piece, many schedules in flight at a time.

The one part of a search that talks to the engine. Answers go into a journal, so that nothing is asked for twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from sglang_moe_opt.fields import show
from sglang_moe_opt.magnitude.realised import realised
from sglang_moe_opt.policy import CUSTOM
from sglang_moe_opt.search.candidate import Candidate
from sglang_moe_opt.search.sensitivity import Ids

PATIENCE_S: Final = 60.0
"""A request that keeps failing is given up after this time."""


class Answers(Protocol):
    """Where answers are kept: `eval.journal.Journal`."""

    def __contains__(self, key: str) -> bool: ...
    def __getitem__(self, key: str) -> Any: ...
    def add(self, answers: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Endpoint:
    """A server that serves the model, with a policy that allows custom schedules.

    Attributes:
        url: its base.
        journal: takes the answers and gives those there are.
        concurrency: HTTP requests at a time, each under one schedule.
        batch_tokens: of one HTTP request, about.
    """

    url: str
    journal: Answers
    concurrency: int = 4
    batch_tokens: int = 4096

    def nats(
        self, candidates: Sequence[Candidate], pieces: Sequence[Ids], advance: Callable[[int], object]
    ) -> NDArray[np.float64]:
        """Minus the log-likelihood of each piece behind its first token, float64 [candidates, pieces].

        Args:
            candidates: schedules.
            pieces: token ids, at least two each.
            advance: is told how many tokens have been answered since the last call, known ones included.

        Raises:
            RuntimeError: the server failed, refused, or did not apply a schedule; one line. What was answered is kept.
        """
        keys = [_key(piece) for piece in pieces]
        jobs = list(self._jobs(candidates, pieces, keys, advance))
        limits = httpx.Limits(max_connections=self.concurrency)
        with (
            httpx.Client(base_url=self.url, timeout=600, trust_env=False, limits=limits) as client,
            ThreadPoolExecutor(self.concurrency) as threads,
        ):
            waiting = iter(jobs)
            running: set[Future[tuple[dict[str, float], int]]] = set()
            try:
                while True:
                    for job in islice(waiting, self.concurrency - len(running)):
                        running.add(threads.submit(self._ask, client, *job))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for found, tokens in (one.result() for one in done):
                        self.journal.add(found)
                        advance(tokens)
            finally:
                threads.shutdown(wait=True, cancel_futures=True)
        return np.array([[self.journal[_entry(c, key)] for key in keys] for c in candidates], np.float64)

    def mean_na(self, hint: Mapping[str, Any], pieces: Sequence[Ids], top_k: int) -> float:
        """Experts that a token gets in a layer under a schedule, on average over both, by the server's counters.

        Args:
            hint: the schedule.
            pieces: token ids.
            top_k: of the model.

        Raises:
            RuntimeError: the server failed, refused, or does not count; one line.
        """
        text = hashlib.sha256("".join(map(_key, pieces)).encode()).hexdigest()[:16]
        entry = f"mean_na {text} {_text(hint)}"
        if entry not in self.journal:
            self.journal.add({entry: round(realised(self.url, hint, pieces, top_k).mean_na, 6)})
        return float(self.journal[entry])

    def _jobs(
        self,
        candidates: Sequence[Candidate],
        pieces: Sequence[Ids],
        keys: Sequence[str],
        advance: Callable[[int], object],
    ) -> Iterator[tuple[Candidate, list[Ids], list[str]]]:
        """What is not known yet, in requests of about `batch_tokens`."""
        for candidate in dict.fromkeys(candidates):
            batch: list[Ids] = []
            entries: list[str] = []
            tokens = 0
            for piece, key in zip(pieces, keys, strict=True):
                entry = _entry(candidate, key)
                if entry in self.journal:
                    advance(len(piece))
                    continue
                if batch and tokens + len(piece) > self.batch_tokens:
                    yield candidate, batch, entries
                    batch, entries, tokens = [], [], 0
                batch.append(piece)
                entries.append(entry)
                tokens += len(piece)
            if batch:
                yield candidate, batch, entries

    def _ask(
        self, client: httpx.Client, candidate: Candidate, pieces: list[Ids], entries: list[str]
    ) -> tuple[dict[str, float], int]:
        """The answers of one request, and how many tokens it had."""
        body = {
            "input_ids": [piece.tolist() for piece in pieces],
            "sampling_params": {
                "max_new_tokens": 1,
                "temperature": 0,
                "custom_params": {"moe_skip": candidate.hint},
            },
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        answers = _post(client, body)
        if not isinstance(answers, list) or len(answers) != len(pieces):
            raise RuntimeError(f"{self.url}: expected {len(pieces)} answers, got {show(answers)}")
        found = {
            entry: self._nats(answer, candidate, len(piece))
            for entry, answer, piece in zip(entries, answers, pieces, strict=True)
        }
        return found, sum(map(len, pieces))

    def _nats(self, answer: Any, candidate: Candidate, length: int) -> float:
        """What one answer says of its prompt. Raises RuntimeError where it is not under the schedule."""
        info = answer.get("meta_info", {}) if isinstance(answer, dict) else {}
        applied = info.get("moe_skip")
        if not _is_applied(applied, candidate):
            raise RuntimeError(
                f"{self.url}: asked for {candidate.hint}, the server says {show(applied)}: it ignores the schedule; "
                "serve with `moe-opt serve` or --moe-opt-config"
            )
        values = [entry[0] for entry in info.get("input_token_logprobs") or ()][1:]
        if len(values) != length - 1 or not all(isinstance(v, float | int) and math.isfinite(v) for v in values):
            raise RuntimeError(f"{self.url}: not a finite log-probability of each of {length} tokens: {show(values)}")
        return round(-math.fsum(values), 6)


def _is_applied(applied: Any, candidate: Candidate) -> bool:
    """Whether the server says of an answer that it is under this schedule."""
    if not isinstance(applied, dict) or not isinstance(mean := applied.get("mean_na"), float | int):
        return False
    wanted = candidate.applied
    same = (applied.get("profile"), applied.get("dynamic")) == (CUSTOM, wanted["dynamic"])
    return same and math.isclose(mean, wanted["mean_na"])


def _post(client: httpx.Client, body: dict[str, Any]) -> Any:
    """The answer of /generate; waits out a server that is busy (429, 5xx) or away for a while. Raises RuntimeError."""
    pause, end = 0.5, math.inf
    while True:
        try:
            reply = client.post("/generate", json=body)
            if reply.status_code == 200:
                return reply.json()
            reason = f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:300]}"
            if reply.status_code < 500 and reply.status_code != 429:
                raise RuntimeError(f"{client.base_url}: the server refused the request: {reason}")
        except (httpx.HTTPError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        end = min(end, time.monotonic() + PATIENCE_S)
        if time.monotonic() + pause > end:
            raise RuntimeError(
                f"{client.base_url}: no answer for {PATIENCE_S:g} s ({reason}); the same command goes on from there"
            )
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _key(piece: Ids) -> str:
    return hashlib.sha256(np.ascontiguousarray(piece, np.int32).tobytes()).hexdigest()[:16]


def _entry(candidate: Candidate, piece: str) -> str:
    """Where the journal has this piece under this schedule."""
    return f"{piece} {_text(candidate.hint)}"


def _text(hint: Mapping[str, Any]) -> str:
    return json.dumps(hint, separators=(",", ":"))
