"""ASGI middleware: reads ``x-moe-skip``, writes the applied profile into the response headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sglang_moe_opt.engine.http import plan, profiles
from sglang_moe_opt.engine.http.resolver import get_resolver
from sglang_moe_opt.engine.http.scope import HEADER, RequestScope, current
from sglang_moe_opt.engine.http.summary import announce
from sglang_moe_opt.engine.metrics import HttpMetrics
from sglang_moe_opt.engine.pruning import get_pruning
from sglang_moe_opt.engine.settings import Settings

Message = MutableMapping[str, Any]
Asgi = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class MoESkipMiddleware:
    """Pure ASGI, so that streaming is untouched: the hints are held until the last byte is sent.

    SGLang's check of API keys goes before it: what that refuses is neither resolved nor counted here.
    """

    def __init__(self, app: Asgi, metrics: HttpMetrics | None = None) -> None:
        self._app = app
        self._metrics = metrics or HttpMetrics()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        is_ours = scope["type"] == "http" and scope["method"] in ("POST", "PUT") and scope["path"] != profiles.PATH
        if not is_ours:
            await self._app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == HEADER]
        request = RequestScope(
            header=values[-1].decode("latin-1") if values else None,
            client=str((scope.get("client") or ("",))[0]),
            resolver=get_resolver(),
        )

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    message["headers"] = [*message.get("headers", ()), *request.response_headers()]
                self._metrics.record(request.hints.values(), message["status"])
                for live, _ in request.held[:1]:
                    self._metrics.live_schedules(len(live))
            await send(message)

        token = current.set(request)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            current.reset(token)
            for live in request.release():
                self._metrics.live_schedules(len(live))


def setup_http_server(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE ``_setup_and_run_http_server``."""
    is_enabled, pruning = Settings.from_env().enabled, get_pruning()
    if not is_enabled and pruning is None:
        return
    from sglang.srt.entrypoints.http_server import app

    app.add_api_route(plan.PATH, plan.served_plan)
    has_admin_key = bool(getattr(server_args, "admin_api_key", None))
    if is_enabled:
        metrics = HttpMetrics()
        profiles.add_routes(app, metrics, has_admin_key)
        app.add_middleware(MoESkipMiddleware, metrics=metrics)
    announce(get_resolver(), pruning, has_admin_key)
