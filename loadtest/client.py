"""A streaming client for one user at a time, on gevent: sends a request, notes when its tokens arrive, never raises."""

from __future__ import annotations

import time
from collections.abc import Mapping

import gevent
import orjson
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPSocketResponse

from loadtest.api import APIS, Event
from loadtest.record import CUT_OFF, Record

DONE = b"[DONE]"
_BLOCK = 1 << 16


class _BrokenStream(Exception):
    """What is wrong with an answer, in few words."""


class StreamClient:
    """One connection, kept alive between requests.

    Args:
        url: of the server.
        api: a name in `loadtest.api.APIS`.
        silence_s: seconds without a byte after which a request has failed.
        headers: sent with every request, such as an API key.
    """

    def __init__(self, url: str, api: str, silence_s: float, headers: Mapping[str, str] | None = None) -> None:
        self._api = APIS[api]
        self._silence_s = silence_s
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **(headers or {})}
        self._url = url
        self._http = self._connect()

    def ask(self, body: bytes, profile: str, zero: float) -> Record:
        """Send and read to the end.

        Args:
            body: JSON of the request.
            profile: for the record.
            zero: `time.monotonic()` of the point's beginning.
        """
        start = time.monotonic()
        arrivals: list[float] = []
        tokens = [0, 0]
        error: str | None = None
        try:
            self._read(body, start, arrivals, tokens)
        except gevent.GreenletExit:
            error = CUT_OFF
        except _BrokenStream as broken:
            error = str(broken)
        except TimeoutError:
            error = f"silent for {self._silence_s:g} s"
        except HTTPParseError:
            error = "connection closed" if arrivals else "no answer"
        except ConnectionRefusedError:
            error = "connection refused"
        except OSError as problem:
            error = f"connection lost ({type(problem).__name__})"
        end = time.monotonic()
        if error:  # the rest of the answer may still be on the way: never read it as the next one's
            self._http.close()
            self._http = self._connect()
        return Record(profile, start - zero, tuple(arrivals), end - start, tokens[0], tokens[1], error)

    def _connect(self) -> HTTPClient:
        patience = self._silence_s
        return HTTPClient.from_url(
            self._url, concurrency=1, connection_timeout=patience, network_timeout=patience, block_size=_BLOCK
        )

    def close(self) -> None:
        self._http.close()

    def _read(self, body: bytes, start: float, arrivals: list[float], tokens: list[int]) -> None:
        """Fill `arrivals` and `tokens` ([input, output]) as the answer comes in."""
        response = self._http.request("POST", self._api.path, body, self._headers)
        if response.status_code != 200:
            raise _BrokenStream(f"HTTP {response.status_code}")
        counted = done = False
        event, separator = _first(response)
        while event:
            now = time.monotonic() - start
            data = _data(event)
            if data == DONE:
                done = True
            elif data:
                read = self._event(data)
                if read.error:
                    raise _BrokenStream(f"error in the stream: {read.error}")
                if read.has_tokens:
                    arrivals.append(now)
                if read.output_tokens is not None:
                    tokens[:] = read.input_tokens or tokens[0], read.output_tokens
                    counted = True
            event = _next(response, separator)
        if not done:
            raise _BrokenStream("stream ended early")
        if not counted:
            raise _BrokenStream("no usage in the stream")

    def _event(self, data: bytes) -> Event:
        try:
            return self._api.read(orjson.loads(data))
        except (ValueError, KeyError, TypeError):
            raise _BrokenStream("broken event") from None


def _first(response: HTTPSocketResponse) -> tuple[bytes, bytes]:
    """The first event, line by line, and what ends an event: that shows which line ends the server uses."""
    event = _next(response, b"\n")
    ending = b"\r\n" if event.endswith(b"\r\n") else b"\n"
    while (line := _next(response, ending)).strip():
        event += line
    return event + ending, ending * 2


def _next(response: HTTPSocketResponse, separator: bytes) -> bytes:
    try:
        return response.readline(separator)
    except gevent.timeout.Timeout:
        raise TimeoutError from None


def _data(event: bytes) -> bytes:
    """The data of an event; empty where it has none (a comment that keeps the connection alive)."""
    if event.startswith(b"data:") and event.count(b"\n") <= 2:
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)
