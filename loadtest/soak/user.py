"""One user of a soak: sends one request after another and enters into the ledger what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx

from loadtest.soak.ledger import Ledger
from loadtest.soak.sentinels import Sentinels
from loadtest.soak.traffic import Job, Traffic

PATH = "/generate"
EARLY_S = 0.01
"""How long a request that is cut off early waits for its answer."""


class User:
    """Sends requests until it is told to stop."""

    def __init__(self, client: httpx.AsyncClient, traffic: Traffic, ledger: Ledger, sentinels: Sentinels) -> None:
        self._client, self._traffic, self._ledger, self._sentinels = client, traffic, ledger, sentinels

    async def run(self, over: asyncio.Event) -> None:
        """One request after another."""
        while not over.is_set():
            job = self._traffic.draw()
            self._ledger.sent[job.kind] += 1
            try:
                await self._send(job)
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                self._ledger.error(f"{job.kind}: {type(error).__name__}: {error}"[:300])

    async def _send(self, job: Job) -> None:
        if job.kind == "cut early":
            await self._cut_early(job)
            return
        headers = {"x-moe-skip": job.hint} if job.in_header else {}
        async with self._client.stream("POST", PATH, json=job.body(), headers=headers) as response:
            if self._refused(job, response, await response.aread() if response.status_code != 200 else b""):
                return
            self._ledger.begun(response.headers["x-moe-skip"])
            if job.streams:
                await self._read_stream(job, response)
                return
            await response.aread()
            self._finish(job, response.json(), response.headers)

    def _refused(self, job: Job, response: httpx.Response, content: bytes) -> bool:
        """Whether there is no answer; what was not to be refused, or not like this, is an error."""
        status = response.status_code
        if status == 200:
            if job.kind == "bad hint":
                self._ledger.error(f"a bad hint was answered: {job.hint!r}"[:300])
            return False
        is_own_schedule = isinstance(job.hint, dict)
        if (status, job.kind == "bad hint") in ((400, True), (429, False)) and (status == 400 or is_own_schedule):
            self._ledger.refused[status] += 1
            if b"allowed:" not in content:
                self._ledger.error(f"HTTP {status} that does not say what is allowed: {content[:200]!r}")
        else:
            self._ledger.error(f"{job.kind} {job.hint!r}: HTTP {status}: {content[:200]!r}"[:400])
        return True

    async def _read_stream(self, job: Job, response: httpx.Response) -> None:
        last: dict[str, Any] | None = None
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            if line[5:].strip() == "[DONE]":
                break
            last = json.loads(line[5:])
            if "error" in last:
                raise ValueError(f"error in the stream: {str(last['error'])[:200]}")
            seen = last["meta_info"]["completion_tokens"]
            if job.cut_after and job.cut_after <= seen < job.new_tokens:
                self._ledger.cut_off(seen, job.new_tokens)
                return  # leaving the context closes the connection
        if last is None:
            raise ValueError("an empty stream")
        self._finish(job, last, response.headers)

    def _finish(self, job: Job, answer: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        tokens = answer["meta_info"]["completion_tokens"]
        self._ledger.whole(tokens)
        if tokens != job.new_tokens:
            self._ledger.error(f"{job.kind} {job.hint!r}: {tokens} tokens of {job.new_tokens}"[:300])
        if job.kind == "sentinel":
            self._ledger.sentinels += 1
            wrong = self._sentinels.wrong(job.ids, job.hint, headers["x-moe-skip-mean-na"], answer["output_ids"])
            if wrong:
                self._ledger.error(wrong)

    async def _cut_early(self, job: Job) -> None:
        """Leave before the answer begins; where it was faster, the stream is cut off at its first token."""
        try:
            async with asyncio.timeout(EARLY_S):
                request = self._client.build_request("POST", PATH, json=job.body())
                response = await self._client.send(request, stream=True)
        except TimeoutError:
            self._ledger.unknown += 1
            self._ledger.cut_at_most += job.new_tokens
            return
        try:
            if not self._refused(job, response, await response.aread() if response.status_code != 200 else b""):
                self._ledger.begun(response.headers["x-moe-skip"])
                self._ledger.cut_off(1, job.new_tokens)
        finally:
            await response.aclose()
