"""The middleware on a real FastAPI application: headers, and how long a schedule counts as live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sglang_moe_opt.engine.http import middleware
from sglang_moe_opt.engine.http.live import LiveSchedules
from sglang_moe_opt.engine.http.middleware import MoESkipMiddleware, setup_http_server
from sglang_moe_opt.engine.http.scope import current_request
from sglang_moe_opt.engine.settings import CONFIG_ENV
from tests.engine.stand_ins import hint

fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
responses = pytest.importorskip("fastapi.responses")

CUSTOM = {"prefill": {"na": 3}, "decode": {"na": 1}}


class Service:
    """An application with the middleware, and what its endpoints saw."""

    def __init__(self) -> None:
        self.live = LiveSchedules(4)
        self.seen: list[Any] = []
        self.values: list[object] = [CUSTOM]
        self.app = fastapi.FastAPI()
        self.app.add_middleware(MoESkipMiddleware)
        self.app.post("/plain")(self.plain)
        self.app.get("/plain")(self.read)
        self.app.post("/sync")(self.in_a_thread)
        self.app.post("/stream")(self.stream)
        self.app.post("/refused")(self.refused)
        self.app.post("/broken")(self.broken)

    def admit(self) -> None:
        request = current_request()
        assert request is not None
        self.seen.append(request.header)
        for value in self.values:
            request.admit(self.live, hint(value))

    async def plain(self) -> dict[str, int]:
        self.admit()
        return {"live": len(self.live)}

    async def read(self) -> dict[str, bool]:
        return {"known": current_request() is not None}

    def in_a_thread(self) -> dict[str, int]:
        self.admit()
        return {"live": len(self.live)}

    async def stream(self) -> Any:
        self.admit()

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield str(len(self.live)).encode()

        return responses.StreamingResponse(chunks())

    async def refused(self) -> Any:
        self.admit()
        return responses.JSONResponse({}, status_code=429)

    async def broken(self) -> None:
        self.admit()
        raise RuntimeError("endpoint")

    def call(self, path: str, method: str = "POST", headers: Any = None) -> Any:
        async def run() -> Any:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(run())


@pytest.fixture
def service() -> Service:
    return Service()


def test_the_answer_names_the_profile(service: Service) -> None:
    service.values = ["fast"]
    response = service.call("/plain")
    assert response.headers["x-moe-skip"] == "fast"
    assert response.headers["x-moe-skip-mean-na"] == "2"
    assert response.json() == {"live": 0}


def test_phases_and_batches_in_the_headers(service: Service) -> None:
    service.values = ["full", CUSTOM]
    response = service.call("/plain")
    assert response.headers["x-moe-skip"] == "full,custom"
    assert response.headers["x-moe-skip-mean-na"] == "6,3/1"


def test_the_requests_header_is_handed_on(service: Service) -> None:
    service.call("/plain", headers={"X-MoE-Skip": "fast"})
    service.call("/plain", headers=[("x-moe-skip", "full"), ("x-moe-skip", "fast")])
    service.call("/plain")
    assert service.seen == ["fast", "fast", None]


@pytest.mark.parametrize("path", ["/plain", "/sync"])
def test_a_schedule_counts_until_the_answer_is_out(service: Service, path: str) -> None:
    assert service.call(path).json() == {"live": 1}
    assert len(service.live) == 0


def test_a_stream_holds_its_schedule_to_the_last_chunk(service: Service) -> None:
    response = service.call("/stream")
    assert response.text == "111"
    assert response.headers["x-moe-skip"] == "custom"
    assert len(service.live) == 0


def test_an_exception_lets_go(service: Service) -> None:
    response = service.call("/broken")
    assert response.status_code == 500
    assert "x-moe-skip" not in response.headers
    assert len(service.live) == 0


def test_an_error_carries_no_profile(service: Service) -> None:
    response = service.call("/refused")
    assert response.status_code == 429 and "x-moe-skip" not in response.headers
    assert len(service.live) == 0


def test_reading_endpoints_are_left_alone(service: Service) -> None:
    response = service.call("/plain", method="GET")
    assert response.json() == {"known": False}
    assert "x-moe-skip" not in response.headers


def test_requests_do_not_see_each_other(service: Service) -> None:
    async def run() -> list[Any]:
        transport = httpx.ASGITransport(app=service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            names = ("fast", "full", "slow")
            calls = [client.post("/stream", headers={"x-moe-skip": name}) for name in names]
            return [response.status_code for response in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [200] * 3
    assert sorted(service.seen) == ["fast", "full", "slow"]
    assert len(service.live) == 0 and current_request() is None


HTTP = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "path": "/stream",
    "raw_path": b"/stream",
    "query_string": b"",
    "root_path": "",
    "scheme": "http",
    "server": ("test", 80),
    "client": ("test", 1),
    "headers": [],
}


def test_a_client_that_leaves_lets_go(service: Service) -> None:
    """The server learns of it from ``receive`` while the stream is under way."""
    sent: list[Any] = []
    received: list[Any] = []
    left = asyncio.Event()

    async def receive() -> Any:
        received.append(None)
        if len(received) == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            left.set()
            await asyncio.sleep(1)  # a slow client: the stream must be cut off here

    asyncio.run(service.app(HTTP, receive, send))
    bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
    assert bodies == [b"1"]
    assert len(service.live) == 0


@pytest.mark.parametrize("error", [OSError("broken pipe"), asyncio.CancelledError()])
def test_a_connection_that_breaks_lets_go(service: Service, error: BaseException) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        raise error

    with pytest.raises(BaseException):  # noqa: B017 - Starlette wraps some of them
        asyncio.run(service.app({**HTTP, "path": "/plain"}, receive, send))
    assert len(service.live) == 0


def test_other_protocols_pass() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], current_request(), send))

    asyncio.run(MoESkipMiddleware(app)({"type": "lifespan"}, None, "send"))
    asyncio.run(MoESkipMiddleware(app)({"type": "websocket"}, None, "send"))
    assert seen == [("lifespan", None, "send"), ("websocket", None, "send")]


def test_the_middleware_is_installed_only_where_skipping_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    http_server = pytest.importorskip("sglang.srt.entrypoints.http_server")
    app = fastapi.FastAPI()
    monkeypatch.setattr(http_server, "app", app)
    setup_http_server("server_args")
    assert app.user_middleware == []
    monkeypatch.setenv(CONFIG_ENV, "builtin")
    assert setup_http_server("server_args", more=1) is None  # the framework keeps the arguments as they are
    assert [entry.cls for entry in app.user_middleware] == [middleware.MoESkipMiddleware]
