"""A soak of a server that runs: users, operator and memory side by side, then the books."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from loadtest.servers import Running
from loadtest.soak.books import Series, compare, parse, quiet
from loadtest.soak.ledger import Ledger
from loadtest.soak.memory import Memory
from loadtest.soak.reloads import PATH, Operator
from loadtest.soak.sentinels import Sentinels
from loadtest.soak.traffic import SENTINEL_TOKENS, STATIC_NA, Traffic
from loadtest.soak.user import User
from loadtest.soak.verdict import Settings, summarise

SAMPLE_S = 2.0
SAY_S = 60.0
SETTLE_S = 120.0
"""Seconds that the server has to end what it still does, and to publish its counters."""
NUM_SENTINELS = 6
_REQUEST_S = 300.0


def soak(running: Running, settings: Settings, policy_file: Path, admin_key: str, vocabulary: int) -> dict[str, Any]:
    """Soak it; the results as `summarise` gives them. Says on stderr how far it is.

    Raises:
        httpx.HTTPError: the server did not answer before there was any load.
    """
    ledger, sentinels, memory = Ledger(), Sentinels(), Memory(running.group)
    with httpx.Client(base_url=running.url, timeout=_REQUEST_S, trust_env=False) as client:
        top_k = int(client.get(PATH).raise_for_status().json()["model"]["top_k"])
        traffic = Traffic(settings.seed, top_k, vocabulary, NUM_SENTINELS)
        start = _settled(client)
        asked = sentinels.ask(client, traffic.sentinels)
        before = _settled(client)
        say(f"{asked} answers known; {settings.concurrency} users for {settings.minutes:g} min")
        operator, seconds = asyncio.run(
            _load(running, settings, ledger, traffic, sentinels, memory, policy_file, admin_key)
        )
        say(f"{ledger.finished} answers, {ledger.num_errors} errors; waiting for the server to be idle")
        after = _settled(client)
        checks = [quiet(start, before, asked, SENTINEL_TOKENS)]
        checks += compare(
            ledger,
            before,
            after,
            client.get(PATH).raise_for_status().json(),
            generation=operator.generation,
            static_na=STATIC_NA,
            top_k=top_k,
        )
    return summarise(settings, seconds, ledger, operator.acts, checks, list(memory.series.values()))


async def _load(
    running: Running,
    settings: Settings,
    ledger: Ledger,
    traffic: Traffic,
    sentinels: Sentinels,
    memory: Memory,
    policy_file: Path,
    admin_key: str,
) -> tuple[Operator, float]:
    limits = httpx.Limits(max_connections=None)
    over, start = asyncio.Event(), time.monotonic()
    async with httpx.AsyncClient(base_url=running.url, timeout=_REQUEST_S, limits=limits, trust_env=False) as client:
        operator = Operator(client, admin_key, policy_file, ledger, settings.reload_every_s, settings.seed)
        users = [User(client, traffic, ledger, sentinels) for _ in range(settings.concurrency)]
        tasks = [asyncio.create_task(user.run(over)) for user in users]
        tasks += [asyncio.create_task(operator.run(over)), asyncio.create_task(_watch(memory, ledger, start, over))]
        await asyncio.wait(tasks, timeout=settings.minutes * 60, return_when=asyncio.FIRST_EXCEPTION)
        over.set()
        await asyncio.gather(*tasks)
    return operator, time.monotonic() - start


async def _watch(memory: Memory, ledger: Ledger, start: float, over: asyncio.Event) -> None:
    told = start
    while not over.is_set():
        await asyncio.to_thread(memory.sample, time.monotonic() - start)
        if time.monotonic() - told >= SAY_S:
            told = time.monotonic()
            say(f"{(told - start) / 60:.0f} min: {ledger.finished} answers, {ledger.num_errors} errors")
        await asyncio.sleep(SAMPLE_S)


def _settled(client: httpx.Client) -> Counter[Series]:
    """Our counters, once nothing is in flight and they have stopped moving."""
    deadline, last = time.monotonic() + SETTLE_S, None
    while time.monotonic() < deadline:
        state = client.get(PATH).raise_for_status().json()
        found = parse(client.get("/metrics").raise_for_status().text)
        idle = not any(one["in_flight"] for one in [*state["profiles"].values(), state["custom"]])
        if idle and found == last:
            return found
        last = found if idle else None
        time.sleep(1.5)
    return parse(client.get("/metrics").raise_for_status().text)


def say(what: str) -> None:
    """A line on stderr, with the time."""
    print(f"soak: {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
