"""ASGI middleware: reads ``x-moe-skip``, writes the applied profile into the response headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from sglang_moe_opt.engine.http import plan
from sglang_moe_opt.engine.http.live import Key, LiveSchedules
from sglang_moe_opt.engine.metrics import HttpMetrics
from sglang_moe_opt.engine.pruning import get_pruning
from sglang_moe_opt.engine.settings import Settings
from sglang_moe_opt.hints import ResolvedHint

Message = MutableMapping[str, Any]
Asgi = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

HEADER = b"x-moe-skip"
MEAN_NA_HEADER = b"x-moe-skip-mean-na"


@dataclass
class RequestScope:
    """One HTTP request: its header, and what was admitted for it (several hints where the body is a batch)."""

    header: str | None
    hints: dict[str, ResolvedHint] = field(default_factory=dict)
    held: list[tuple[LiveSchedules, Key]] = field(default_factory=list)

    def admit(self, live: LiveSchedules, hint: ResolvedHint) -> None:
        """Remember the schedule until the response is out. Raises HintError (429) where it is one too many."""
        key = live.acquire(hint)
        if key is not None:
            self.held.append((live, key))
        self.hints[hint.profile] = hint

    def release(self) -> list[LiveSchedules]:
        """Let go of the schedules; returns the counters that changed."""
        changed = [live for live, _ in self.held]
        for live, key in self.held:
            live.release(key)
        self.held.clear()
        return changed[:1]

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        if not self.hints:
            return []
        means = (hint.mean_na for hint in self.hints.values())
        texts = (f"{m:g}" if isinstance(m, float) else f"{m['prefill']:g}/{m['decode']:g}" for m in means)
        return [(HEADER, ",".join(self.hints).encode()), (MEAN_NA_HEADER, ",".join(texts).encode())]


_current: ContextVar[RequestScope | None] = ContextVar("moe_opt_request", default=None)


def current_request() -> RequestScope | None:
    """The HTTP request under way; None outside HTTP (the Python engine)."""
    return _current.get()


class MoESkipMiddleware:
    """Pure ASGI, so that streaming is untouched: the hints are held until the last byte is sent."""

    def __init__(self, app: Asgi) -> None:
        self._app = app
        self._metrics = HttpMetrics()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await self._app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == HEADER]
        request = RequestScope(header=values[-1].decode("latin-1") if values else None)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    message["headers"] = [*message.get("headers", ()), *request.response_headers()]
                self._metrics.record(request.hints.values(), message["status"])
                for live, _ in request.held[:1]:
                    self._metrics.live_schedules(len(live))
            await send(message)

        token = _current.set(request)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            _current.reset(token)
            for live in request.release():
                self._metrics.live_schedules(len(live))


def setup_http_server(*args: Any, **kwargs: Any) -> None:
    """BEFORE ``_setup_and_run_http_server``."""
    is_enabled = Settings.from_env().enabled
    if is_enabled or get_pruning() is not None:
        from sglang.srt.entrypoints.http_server import app

        app.add_api_route(plan.PATH, plan.served_plan)
        if is_enabled:
            app.add_middleware(MoESkipMiddleware)
