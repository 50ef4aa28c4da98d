"""The operator of a soak: reloads the policy, also with files that are none, with a wrong key, and twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx

from loadtest.soak.ledger import Ledger
from loadtest.soak.traffic import BROKEN, policy
from sglang_moe_opt.files import write_atomically

PATH = "/moe_opt/profiles"


class Operator:
    """Acts every so many seconds.

    Args:
        client: of the server.
        admin_key: of the server.
        file: the policy file that the server was started with.
        ledger: for what was not intended.
        every_s: mean seconds between two acts.
        seed: equal seeds act alike.
    """

    def __init__(
        self, client: httpx.AsyncClient, admin_key: str, file: Path, ledger: Ledger, every_s: float, seed: int
    ) -> None:
        self._client, self._key, self._file, self._ledger = client, admin_key, file, ledger
        self._every_s, self._rng = every_s, random.Random(seed)
        self.generation = 1
        self.acts = {"reloaded": 0, "unchanged": 0, "refused": 0, "wrong key": 0, "read": 0}

    async def run(self, over: asyncio.Event) -> None:
        """One act after another."""
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), self._rng.uniform(0.5, 1.5) * self._every_s)
            except TimeoutError:
                try:
                    await self._act()
                except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                    self._ledger.error(f"operator: {type(error).__name__}: {error}"[:300])

    async def _act(self) -> None:
        act = self._rng.choices(list(self.acts), weights=[5, 1, 3, 1, 2])[0]
        self.acts[act] += 1
        if act == "reloaded":
            write_atomically(self._file, policy(self.generation + 1))
            self.generation += 1
            await self._reload(200)
        elif act == "unchanged":
            await self._reload(200)
        elif act == "refused":
            text, field = self._rng.choice(BROKEN)
            write_atomically(self._file, text)
            found = await self._reload(400)
            if found.get("error", {}).get("param") != field:
                self._ledger.error(f"a reload was refused for {found}, not for {field}")
            write_atomically(self._file, policy(self.generation))
        elif act == "wrong key":
            await self._reload(401, key="wrong")
        else:
            state = (await self._client.get(PATH)).raise_for_status().json()
            if state["generation"] != self.generation:
                self._ledger.error(f"generation {state['generation']}, not {self.generation}")

    async def _reload(self, expected: int, key: str | None = None) -> dict:
        headers = {"authorization": f"Bearer {key or self._key}"}
        answer = await self._client.post(PATH, headers=headers)
        content: dict = answer.json()
        if answer.status_code != expected:
            self._ledger.error(f"reload: HTTP {answer.status_code}, not {expected}: {content}"[:400])
        elif expected == 200 and content["generation"] != self.generation:
            self._ledger.error(f"reload: generation {content['generation']}, not {self.generation}")
        return content
