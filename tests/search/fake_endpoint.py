"""A tiny HTTP server whose /generate answers like SGLang's with prompt log-probabilities, or misbehaves in one way."""

from __future__ import annotations

import json
import threading
import time
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

from tests.serving import serving

TOP_K = 4


class FakeEndpoint(ThreadingHTTPServer):
    """`fault`: none, busy (429 for the first `count` requests), ignores, ranks (weights do not matter), nan, short,
    refuses, dies (after `count`)."""

    daemon_threads = True

    def __init__(self, fault: str, count: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault, self.count = fault, count
        self.requests = 0
        self.prompts: list[tuple[list[int], Any]] = []
        self.at_a_time = 0
        self.most_at_a_time = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def fake_endpoint(fault: str = "none", count: int = 0) -> AbstractContextManager[FakeEndpoint]:
    """Serve until the block ends."""
    return serving(FakeEndpoint(fault, count))


def logprob(before: int, token: int, layers: list[int]) -> float:
    """Deterministic, the lower the fewer experts."""
    return -0.5 - ((before * 7919 + token * 104729) % 97) / 97 - 1.0 / (1 + sum(layers))


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.requests += 1
            number = server.requests
            server.at_a_time += 1
            server.most_at_a_time = max(server.most_at_a_time, server.at_a_time)
        time.sleep(0.02)
        hint = body["sampling_params"]["custom_params"]["moe_skip"]
        if server.fault == "refuses":
            answer, status = {"error": {"message": "layers: got 9"}}, 400
        elif server.fault == "busy" and number <= server.count:
            answer, status = {"error": {"message": "too many schedules"}}, 429
        elif server.fault == "dies" and number > server.count:
            answer, status = {"error": {"message": "gone"}}, 500
        else:
            with server.lock:
                server.prompts += [(ids, hint) for ids in body["input_ids"]]
            answer, status = [self._answer(ids, hint) for ids in body["input_ids"]], 200
        with server.lock:
            server.at_a_time -= 1
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, ids: list[int], hint: dict[str, Any]) -> dict[str, Any]:
        fault = self.server.fault
        layers = hint.get("layers") or [TOP_K] * len(hint["min_weight"])
        values: list[list[Any]] = [[None, ids[0], None]]
        values += [[logprob(a, b, layers), b, None] for a, b in pairwise(ids)]
        if fault == "nan":
            values[-1][0] = float("nan")
        if fault == "short":
            values.pop()
        info: dict[str, Any] = {"input_token_logprobs": values}
        if fault != "ignores":
            dynamic = "min_weight" in hint and fault != "ranks"
            info["moe_skip"] = {"profile": "custom", "mean_na": sum(layers) / len(layers), "dynamic": dynamic}
        return {"text": "", "meta_info": info}

    def log_message(self, *arguments: Any) -> None: ...
