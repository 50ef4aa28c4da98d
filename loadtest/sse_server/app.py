"""The server: one clock serves all streams that are due, so that a thousand of them cost a fraction of a core."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from loadtest.sse_server import wire
from loadtest.sse_server.schedule import SLOWER, Fault, Schedule, fault_of

TICK_S = 0.001
CONTEXT = 1 << 20
STREAMS = ("/generate", "/v1/completions", "/v1/chat/completions")


class App:
    """What all connections share.

    Args:
        schedule, faults: see there.
        model: folder that the server says it serves, as SGLang would; None leaves that out.
        max_running: further requests wait until one is over; None is no limit.
    """

    def __init__(
        self, schedule: Schedule, faults: Sequence[Fault] = (), model: str | None = None, max_running: int | None = None
    ) -> None:
        self._schedule, self._faults, self._max_running = schedule, faults, max_running
        self._facts = {path: orjson.dumps(content) for path, content in wire.facts(model, CONTEXT)}
        self.requests = 0
        self._due: list[tuple[float, int, Iterator[float], Answer]] = []
        self._order = itertools.count()
        self._waiting: deque[tuple[Answer, float]] = deque()
        self._running = 0
        self.sent = 0
        self.lateness: deque[float] = deque(maxlen=100_000)

    async def tick(self) -> None:
        """Send what is due, for ever."""
        while True:
            now = time.monotonic()
            due = self._due
            while due and due[0][0] <= now:
                at, _, later, answer = heapq.heappop(due)
                if answer.closed or answer.silent:
                    continue
                self.sent += 1
                answer.send_next()
                self.lateness.append(time.monotonic() - at)  # not `now`: those before it in this tick took their time
                following = next(later, None)
                if following is not None:
                    heapq.heappush(due, (following, next(self._order), later, answer))
            pause = min(max(due[0][0] - time.monotonic(), 0.0), TICK_S) if due else TICK_S
            await asyncio.sleep(pause)

    def ask(self, answer: Answer) -> None:
        """Take a request; its clock begins when it is no longer waiting."""
        if self._max_running is not None and self._running >= self._max_running:
            self._waiting.append((answer, time.monotonic()))
        else:
            self._begin(answer)

    def number(self) -> int:
        self.requests += 1
        return self.requests - 1

    def fault(self, request: int) -> str | None:
        return fault_of(self._faults, request)

    def over(self) -> None:
        """A request has left the batch: the next one waiting takes its place."""
        self._running -= 1
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.closed:
                self._begin(answer)
                return

    def look(self, path: str) -> bytes | None:
        """The answer to a GET."""
        if path == "/v1/loads":
            waiting = sum(not answer.closed for answer, _ in self._waiting)
            load = {"num_running_reqs": self._running, "num_waiting_reqs": waiting}
            return orjson.dumps({"loads": [load]})
        if path == "/metrics":
            return f"sglang:num_running_reqs {self._running}\n".encode()
        if path == "/sent":
            late = sorted(self.lateness)
            worst = {"p99_late_ms": 1000 * late[int(0.99 * len(late))], "most_late_ms": 1000 * late[-1]} if late else {}
            return orjson.dumps({"requests": self.requests, "chunks": self.sent, "running": self._running, **worst})
        return self._facts.get(path)

    def _begin(self, answer: Answer) -> None:
        self._running += 1
        answer.running = True
        zero = time.monotonic()
        offsets = self._schedule.arrivals(answer.number, answer.tokens)
        if answer.fault == "slow":
            offsets = [offsets[0] + SLOWER * (offset - offsets[0]) for offset in offsets]
        if not answer.streams:
            offsets = offsets[-1:]
        later = iter([zero + offset / 1000 for offset in offsets])
        first = next(later, None)
        if first is not None:
            heapq.heappush(self._due, (first, next(self._order), later, answer))


class Answer:
    """One request under way on one connection."""

    def __init__(self, app: App, transport: asyncio.Transport, path: str, body: dict[str, Any], number: int) -> None:
        self._app, self._transport = app, transport
        self._stream = wire.stream(path, body)
        self.streams = bool(body.get("stream"))
        self.number, self.tokens = number, len(self._stream.tokens)
        self.fault = app.fault(number)
        self.closed = self.running = self.silent = False
        self._next = 0
        if self.streams:
            transport.write(wire.STREAM_HEAD + self._stream.opening)

    def send_next(self) -> None:
        """The next token; the end of the stream goes with the last one."""
        if not self.streams:
            self._finish(wire.response(200, self._stream.whole))
            return
        if self._next >= self.tokens // 2 and self.fault in ("broken", "cut", "stall", "error_event"):
            self._go_wrong()
            return
        data = self._stream.tokens[self._next]
        self._next += 1
        if self._next < self.tokens:
            self._transport.write(data)
        else:
            self._finish(data + self._stream.closing)

    def close(self) -> None:
        """The client has gone, or the answer is complete."""
        if not self.closed:
            self.closed = True
            if self.running:
                self._app.over()

    def _finish(self, data: bytes) -> None:
        self._transport.write(data)
        self.close()

    def _go_wrong(self) -> None:
        if self.fault == "stall":
            self.silent = True  # until the client gives up
            return
        if self.fault == "error_event":
            self._finish(wire.ERROR)
            return
        if self.fault == "broken":
            self._transport.write(wire.TORN)
        self._transport.close()
        self.close()


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time, kept alive."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._buffer = b""
        self._answer: Answer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1").split("\r\n")
            parts = [line.partition(":") for line in head[1:]]
            headers = {name.strip().lower(): value.strip() for name, _, value in parts}
            length = int(headers.get("content-length", 0))
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            method, target, _ = head[0].split(" ", 2)
            self._handle(method, target.partition("?")[0], body)

    def _handle(self, method: str, path: str, body: bytes) -> None:
        if method == "POST" and path in STREAMS:
            self._stream(path, body)
        elif method == "POST" and path == "/flush_cache":
            self._transport.write(wire.response(200, b"{}"))
        else:
            found = self._app.look(path)
            kind = "text/plain" if path == "/metrics" else "application/json"
            self._transport.write(wire.response(404, b"{}") if found is None else wire.response(200, found, kind))

    def _stream(self, path: str, body: bytes) -> None:
        number = self._app.number()
        if self._app.fault(number) == "http500":
            self._transport.write(wire.response(500, b'{"error": {"message": "out of order"}}'))
            return
        try:
            self._answer = Answer(self._app, self._transport, path, orjson.loads(body), number)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            self._transport.write(wire.response(400, orjson.dumps({"error": {"message": str(error)}})))
            return
        self._app.ask(self._answer)


async def serve(app: App, port: int) -> None:
    """Listen on this machine, say where, and serve until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(app), "127.0.0.1", port, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await app.tick()
