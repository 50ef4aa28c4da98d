"""The realised mean is read off the counters of the requests that were sent, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sglang_moe_opt.magnitude import realised as module
from sglang_moe_opt.magnitude.realised import first_pieces, realised
from tests.serving import serving

PIECES = [np.arange(length, dtype=np.int32) for length in (5, 3, 7, 1)] * 10
KEPT_OF_8, CACHED = 3, 1


class Server(ThreadingHTTPServer):
    """Counts as the plugin does, of which two counters were moved before; `lag` answers show old counts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.tokens, self.lag, self.refuse = 0, 2, False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        lengths = list(map(len, body["input_ids"]))
        self.server.tokens += sum(lengths) - CACHED * len(lengths)
        meta = [{"meta_info": {"prompt_tokens": length, "cached_tokens": CACHED}} for length in lengths]
        self._answer(400 if self.server.refuse else 200, "no such rule" if self.server.refuse else json.dumps(meta))

    def do_GET(self) -> None:
        shown = self.server.tokens
        if shown and self.server.lag:
            self.server.lag, shown = self.server.lag - 1, shown // 2
        lines = [
            f'sglang_moe_opt_tokens_total{{phase="prefill",profile="custom"}} {100 + shown}.0',
            'sglang_moe_opt_tokens_total{phase="prefill",profile="full"} 1e6',
            f'sglang_moe_opt_slots_kept_total{{profile="custom"}} {700 + 4 * KEPT_OF_8 * shown}',
            f'sglang_moe_opt_slots_offered_total{{profile="custom"}} {800 + 4 * 8 * shown}',
            'sglang_moe_opt_slots_offered_total{profile="full"} 9e9',
        ]
        self._answer(200, "\n".join(lines))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


def test_the_mean_is_of_what_was_sent(server: Server) -> None:
    found = realised(server.url, {"min_ratio": [0.1, 0.2]}, PIECES, top_k=8)
    assert found.mean_na == pytest.approx(KEPT_OF_8)
    assert found.tokens == 160 - len(PIECES)
    assert [ids for body in server.bodies for ids in body["input_ids"]] == [piece.tolist() for piece in PIECES]
    assert {json.dumps(body["sampling_params"]["custom_params"]) for body in server.bodies} == {
        '{"moe_skip": {"min_ratio": [0.1, 0.2]}}'
    }
    assert len({body["extra_key"] for body in server.bodies}) == 1


def test_nothing_is_taken_from_the_cache(server: Server) -> None:
    for _ in range(2):
        realised(server.url, {"na": 3}, PIECES[:2], top_k=8)
    assert len({body["extra_key"] for body in server.bodies}) == 2


def test_what_goes_wrong_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    server.lag = 10**6
    with pytest.raises(RuntimeError, match=r"counts .* of 6 tokens"):
        realised(server.url, {"na": 3}, PIECES[:2], top_k=8)
    server.refuse = True
    with pytest.raises(RuntimeError, match="HTTP 400: no such rule"):
        realised(server.url, {"na": 3}, PIECES[:2], top_k=8)
    with pytest.raises(RuntimeError, match="no /metrics there"):
        realised("http://127.0.0.1:9", {"na": 3}, PIECES[:2], top_k=8)


def test_first_pieces() -> None:
    assert list(map(len, first_pieces(PIECES, 6))) == [5, 3]
    assert len(first_pieces(PIECES, 10**6)) == len(PIECES)
