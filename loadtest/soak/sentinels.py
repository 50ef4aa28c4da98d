"""Prompts whose answers are known: under every fixed schedule the same tokens must come back, whatever else goes on.

A prompt that was cached under a profile's old definition and served under its new one would give other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from loadtest.soak.traffic import KNOWN, SENTINEL_TOKENS, Job

Ids = tuple[int, ...]


class Sentinels:
    """The known answers, by prompt, profile and the `x-moe-skip-mean-na` that tells its definitions apart."""

    def __init__(self) -> None:
        self._known: dict[tuple[Ids, str], dict[str, list[int]]] = {}

    def ask(self, client: httpx.Client, prompts: Sequence[Ids]) -> int:
        """Ask for them one by one, under schedules that no policy names; returns how many requests that took.

        Raises:
            httpx.HTTPError: the server refuses one.
        """
        for name, schedules in KNOWN.items():
            for ids in prompts:
                for hint in schedules:
                    job = Job("sentinel", ids, hint, SENTINEL_TOKENS)
                    answer = client.post("/generate", json=job.body()).raise_for_status()
                    self.learn(ids, name, answer.headers["x-moe-skip-mean-na"], answer.json()["output_ids"])
        return len(prompts) * sum(map(len, KNOWN.values()))

    def learn(self, ids: Ids, profile: str, mean_na: str, tokens: Sequence[int]) -> None:
        """Remember an answer."""
        self._known.setdefault((ids, profile), {})[mean_na] = list(tokens)

    def wrong(self, ids: Ids, profile: str, mean_na: str, tokens: Sequence[int]) -> str | None:
        """What is wrong with an answer; None where it is the known one."""
        known = self._known[ids, profile]
        if mean_na not in known:
            return f"{profile} ran with {mean_na} experts, never defined so: {sorted(known)}"
        if list(tokens) != known[mean_na]:
            others = [other for other, answer in known.items() if answer == list(tokens)]
            meant = f", which is the answer with {others[0]}" if others else ""
            return f"{profile} with {mean_na} experts gave other tokens than before{meant}: {list(tokens)}"
        return None
