"""A tiny HTTP server that answers like SGLang with expert skipping, or misbehaves in one chosen way."""

from __future__ import annotations

import itertools
import json
import math
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.serving import serving


class FakeServer(ThreadingHTTPServer):
    """Log-probabilities are a function of a token, the one before it, and the schedule.

    `fault` is one of: none, no_logprobs, no_echo, constant, nan, ignores_hint, no_header, wrong_header, wrong_mean_na,
    refuses (HTTP 400), busy (HTTP 500 for the first `failures` requests), dies (HTTP 500 after `failures` answers).
    `plan` is a file that it says it runs under.
    """

    daemon_threads = True

    def __init__(self, model: Path, fault: str = "none", failures: int = 0, plan: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.fault = fault
        self.failures = failures
        self.plan = plan
        self.prompts: list[list[int]] = []
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def fake_server(
    model: Path, fault: str = "none", failures: int = 0, plan: Path | None = None
) -> AbstractContextManager[FakeServer]:
    """Serve until the block ends."""
    return serving(FakeServer(model, fault, failures, plan))


def logprob(before: int, token: int, hint: Any) -> float:
    """Deterministic, between -9 and -0.1."""
    salt = sum(map(ord, json.dumps(hint)))
    return -0.1 - 8.9 * (((before * 7919 + token * 104729 + salt * 31) % 997) / 997)


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        folder = str(self.server.model)
        plan = self.server.plan
        answers: dict[str, Any] = {
            "/moe_prune_plan": plan and {"file": str(plan), "plan": json.loads(plan.read_text())},
            "/model_info": {"model_path": folder, "tokenizer_path": folder},
            "/v1/models": {"data": [{"id": folder, "max_model_len": 256}]},
            "/server_info": {"dtype": "float32", "launch_command": f"--model-path {folder} --moe-opt-config builtin"},
        }
        self._send(200, answers[self.path])

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.requests += 1
        fault = server.fault
        if fault == "refuses":
            self._send(400, {"object": "error", "message": "custom_params.moe_skip: got 'x', allowed: full"})
            return
        if (fault == "busy" and server.requests <= server.failures) or (
            fault == "dies" and server.requests > server.failures
        ):
            self._send(500, {"error": {"message": "out of order"}})
            return
        hint = body["custom_params"]["moe_skip"]
        server.prompts += body["prompt"]
        choices = [self._choice(index, ids, body, hint) for index, ids in enumerate(body["prompt"])]
        profile = "custom" if isinstance(hint, dict) else hint
        means = {"full": 6, "fast": 2, "balanced": 4}
        mean = means[hint] if isinstance(hint, str) else hint["na"]
        headers = {"x-moe-skip": profile, "x-moe-skip-mean-na": str(mean)}
        if fault == "no_header":
            headers = {}
        elif fault == "wrong_header":
            headers["x-moe-skip"] = "full"
        elif fault == "wrong_mean_na":
            headers["x-moe-skip-mean-na"] = "5"
        self._send(200, {"choices": choices[::-1]}, headers)

    def _choice(self, index: int, ids: list[int], body: dict[str, Any], hint: Any) -> dict[str, Any]:
        if not body.get("echo"):
            return {"index": index, "text": f" word{len(ids)}, and more"}
        fault = self.server.fault
        if fault == "ignores_hint":
            hint = "full"
        values: list[float | None] = [None] + [logprob(a, b, hint) for a, b in itertools.pairwise(ids)]
        if fault == "constant":
            values[1:] = [-1.0] * (len(ids) - 1)
        if fault == "nan":
            values[2] = math.nan
        values.append(-0.5)
        if fault == "no_echo":
            values = values[-1:]
        logprobs = {
            "token_logprobs": values,
            "top_logprobs": [None] + [{"a": value, "b": -0.2} for value in values[1:]],
        }
        return {"index": index, "text": "", "logprobs": None if fault == "no_logprobs" else logprobs}

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
