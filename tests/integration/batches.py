"""Requests that run side by side for certain: the engine stands still until the server has them all."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from server import Server, eventually

Ask = tuple[list[int], object]
"""A prompt's tokens and its hint."""


@contextmanager
def stands_still(server: Server) -> Iterator[None]:
    """The engine makes no step meanwhile, and the server hands it no request; then both go on."""
    assert server.client.post("/pause_generation", json={"mode": "in_place"}).status_code == 200
    try:
        yield
    finally:
        assert server.client.post("/continue_generation", json={}).status_code == 200


def has_in_flight(server: Server, requests: int) -> bool:
    """Whether the server comes to have so many requests that are not answered."""

    def number() -> int:
        state = server.client.get("/moe_opt/profiles").json()
        return sum(one["in_flight"] for one in (*state["profiles"].values(), state["custom"]))

    return eventually(lambda: number() == requests)


def together(server: Server, asks: Sequence[Ask], new_tokens: int) -> tuple[list[list[int]], list[int]]:
    """The answers to requests that begin at once, and how many requests decoded in each step.

    However long the client takes to send them, the engine meets them behind a prompt that takes longer to compute than
    they take from one process to the other.
    """
    server.flush_cache()
    assert has_in_flight(server, 0)
    before = server.log.stat().st_size
    with ThreadPoolExecutor(1 + len(asks)) as pool:
        with stands_still(server):
            long = random.Random(0).choices(range(100, 4000), k=1800)
            pool.submit(server.tokens, long, "full", new_tokens=1)
            assert has_in_flight(server, 1)
            answers = [pool.submit(server.tokens, *ask, new_tokens=new_tokens) for ask in asks]
            assert has_in_flight(server, 1 + len(asks))
        found = [answer.result() for answer in answers]
    return found, running_requests(server, before)


def running_requests(server: Server, start: int) -> list[int]:
    """Requests of each decode step that the log tells of from this byte on."""
    log = server.log.read_bytes()[start:]
    return [int(number) for number in re.findall(rb"Decode batch.*?#running-req: (\d+)", log)]
