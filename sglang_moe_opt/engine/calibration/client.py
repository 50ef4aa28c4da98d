"""The client's part of a calibration: sends the pieces to a server of its own, group by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx

from sglang_moe_opt.engine.calibration import CALIBRATE_ENV, DUMP_FILE, JOB_FILE, request_id
from sglang_moe_opt.pruning.calibration import RECORDED, Calibration

_REQUEST_TOKENS: Final = 4096
"""In one HTTP request: the progress bar moves that often."""

NO_GRAPHS: Final = ("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled")
"""Layers are recorded in Python, which a graph would leave out."""


def server_env(calibration: Calibration) -> dict[str, str]:
    """Environment of a server that records for this calibration; writes what its scheduler must know.

    ``record`` must be called with the same calibration.
    """
    from safetensors.numpy import save_file

    exchange = calibration.folder.resolve() / RECORDED
    exchange.mkdir(parents=True, exist_ok=True)
    save_file({"starts": calibration.corpus.starts, "sample": calibration.sample}, exchange / JOB_FILE)
    return {CALIBRATE_ENV: str(exchange)}


def record(calibration: Calibration, url: str, advance: Callable[[int], None]) -> None:
    """Record the groups that are missing.

    Args:
        calibration: an open one.
        url: of a fresh server that was started with ``server_env``.
        advance: is told how many tokens have been computed since the last call.

    Raises:
        RuntimeError: the server failed; groups recorded before are kept.
    """
    dump = calibration.folder / RECORDED / DUMP_FILE
    with httpx.Client(base_url=url, timeout=None, trust_env=False) as client:
        for index in calibration.missing():
            dump.unlink(missing_ok=True)
            for pieces in calibration.corpus.runs(calibration.groups[index], _REQUEST_TOKENS):
                _post(client, "/generate", _body(calibration, pieces))
                advance(calibration.tokens_of(pieces))
            _post(client, "/dump_expert_distribution_record", None)
            calibration.keep(index, dump)


def _body(calibration: Calibration, pieces: range) -> dict[str, Any]:
    return {
        "rid": [request_id(piece) for piece in pieces],
        "input_ids": [calibration.corpus.pieces[piece].tolist() for piece in pieces],
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
    }


def _post(client: httpx.Client, path: str, body: dict[str, Any] | None) -> None:
    try:
        reply = client.post(path, json=body)
    except httpx.HTTPError as error:
        raise RuntimeError(f"the server stopped answering ({error}); the same command goes on from there") from None
    if reply.status_code != 200:
        raise RuntimeError(f"the server answered HTTP {reply.status_code} on {path}: {reply.text[:300]}")
