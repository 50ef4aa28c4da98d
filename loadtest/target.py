"""A server under load: what it is, how it is asked, and what it says of itself while it works."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import httpx

from eval.endpoint import HEADER, EndpointError
from eval.plans import NamedPlan
from eval.served import ServedModel, connect
from loadtest.api import APIS, Ask
from loadtest.burst import flush_cache
from loadtest.folder import ServerSide
from sglang_moe_opt.exposition import total
from sglang_moe_opt.fields import FieldError

POLL_S = 0.5


@dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
        url: its base.
        api: a name in `loadtest.api.APIS`.
        model: what requests call its model.
        served: what SGLang says of itself; None for another kind of server.
    """

    url: str
    api: str
    model: str
    served: ServedModel | None

    def known_under(self, plan: NamedPlan | None) -> Target:
        """The same, its plan called as here. Raises EndpointError where it is served under another one."""
        return replace(self, served=(self.served or connect(self.url)).known_under(plan))

    def flush(self, client: httpx.Client) -> None:
        """Empty the prefix cache, where the server can do that."""
        if self.served is not None:
            flush_cache(client, self.url)

    def is_up(self, client: httpx.Client) -> bool:
        try:
            return client.get(self.url + "/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


def find_target(url: str, api: str, *, needs_text: bool, model: str | None = None) -> Target:
    """Ask a server what it is.

    Args:
        url: such as http://localhost:30000.
        api: a name in `loadtest.api.APIS`, or `auto`: token ids go to SGLang's /generate where the server has no
            tokenizer, else to /v1/completions; texts go to /v1/chat/completions.
        needs_text: the prompts are texts.
        model: folder or hub id of its config, where the server's own path is not readable.

    Raises:
        FieldError: an API that is none, or that the server cannot be asked through.
        EndpointError: nothing answers there.
    """
    if api != "auto" and api not in APIS:
        raise FieldError("--api", api, f"auto, {', '.join(APIS)}")
    served: ServedModel | None
    try:
        served = connect(url, model)
    except EndpointError:
        served = None
    with httpx.Client(timeout=30, trust_env=False) as client:
        name, tokenless = _facts(client, url.rstrip("/"), served)
    if tokenless and (needs_text or api not in ("auto", "generate")):
        raise FieldError("--prompts" if needs_text else "--api", api, f"token ids to generate: {url} has no tokenizer")
    if api == "auto":
        api = "generate" if tokenless else "chat" if needs_text else "completions"
    return Target(url.rstrip("/"), api, name, served)


def _facts(client: httpx.Client, url: str, served: ServedModel | None) -> tuple[str, bool]:
    """The model's name, and whether the server has no tokenizer."""
    if served is None:
        try:
            models = client.get(url + "/v1/models").raise_for_status().json()
            return str(models["data"][0]["id"]), False
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise EndpointError(
                f"{url}: /v1/models cannot be read ({type(error).__name__}): no server there?"
            ) from None
    info = client.get(url + "/server_info").json()
    return served.name, bool(info.get("skip_tokenizer_init"))


class Watch:
    """Samples a server while a point runs: its batch and queue, and what its counters moved by.

    Use as a context manager; `side` is complete after it.
    """

    def __init__(self, target: Target, client: httpx.Client) -> None:
        self._target, self._client = target, client
        self._over = threading.Event()
        self._samples: list[tuple[int, int]] = []
        self._before = _counters(client, target)
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.side = ServerSide()

    def __enter__(self) -> Watch:
        if self._target.served is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(10)
        if kind is None:
            self.side = self._gather()

    def _sample(self) -> None:
        with httpx.Client(timeout=5, trust_env=False) as client:
            while not self._over.wait(POLL_S):
                try:
                    answer = client.get(self._target.url + "/v1/loads", params={"include": "core"}).json()
                    loads = answer["loads"]
                    running = sum(load["num_running_reqs"] for load in loads)
                    self._samples.append((running, sum(load["num_waiting_reqs"] for load in loads)))
                except (httpx.HTTPError, ValueError, LookupError, TypeError):
                    continue

    def _gather(self) -> ServerSide:
        after = _counters(self._client, self._target)
        moved = {name: after[name] - self._before.get(name, 0.0) for name in after}
        busy = [sample for sample in self._samples if sum(sample)]
        return ServerSide(
            running=[running for running, _ in busy],
            waiting=[waiting for _, waiting in busy],
            distinct_experts=_ratio(moved, "unique_sum", "unique_count"),
            slots_kept=_ratio(moved, "kept", "offered"),
            generated_tokens=int(moved["generated"]) if "generated" in moved else None,
        )


_COUNTERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "unique_sum": ("sglang_moe_opt_unique_experts_sum", {"phase": "decode"}),
    "unique_count": ("sglang_moe_opt_unique_experts_count", {"phase": "decode"}),
    "kept": ("sglang_moe_opt_slots_kept_total", {}),
    "offered": ("sglang_moe_opt_slots_offered_total", {}),
    "generated": ("sglang:generation_tokens_total", {}),
}


def _counters(client: httpx.Client, target: Target) -> dict[str, float]:
    """The server's counters that are there, summed over their labels."""
    if target.served is None:
        return {}
    try:
        text = client.get(target.url + "/metrics").raise_for_status().text
        found = {name: total(text, counter, **labels) for name, (counter, labels) in _COUNTERS.items()}
    except (httpx.HTTPError, ValueError):
        return {}
    return {name: value for name, value in found.items() if value is not None}


def _ratio(moved: dict[str, float], top: str, bottom: str) -> float | None:
    return moved[top] / moved[bottom] if moved.get(bottom) else None


def check_hints(client: httpx.Client, target: Target, hints: Mapping[str, Any]) -> None:
    """Send one token's worth of every hint (by label): a server without skipping would ignore them without a word.

    Raises:
        EndpointError: it refuses a hint, or does not say that it applied it.
    """
    api = APIS[target.api]
    for label, hint in hints.items():
        body = api.body(Ask([1, 2, 3] if target.api != "chat" else None, "a", 1, hint), target.model)
        body = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
        try:
            answer = client.post(target.url + api.path, json=body, timeout=60)
        except httpx.HTTPError as error:
            raise EndpointError(f"{target.url}: no answer to a first request ({type(error).__name__})") from None
        if answer.status_code != 200:
            raise EndpointError(f"{target.url}: {label}: HTTP {answer.status_code}: {answer.text[:200]}")
        if hint is not None and HEADER not in answer.headers:
            raise EndpointError(f"{target.url}: {label}: the server ignores skip hints; start it with moe-opt serve")
