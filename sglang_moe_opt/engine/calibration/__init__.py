"""Calibration: a server that records, of prompts that are marked for it, what every routed expert does with them.

``SGLANG_MOE_OPT_CALIBRATE`` names the folder through which client and scheduler talk: ``job.safetensors`` says which
tokens there are and which to sample, ``dump.safetensors`` is what was recorded since the last dump.
"""

from __future__ import annotations

import os
from typing import Final

CALIBRATE_ENV: Final = "SGLANG_MOE_OPT_CALIBRATE"
JOB_FILE: Final = "job.safetensors"
DUMP_FILE: Final = "dump.safetensors"

_MARK: Final = "moe-opt-calibrate-"


def is_on() -> bool:
    """Whether this process belongs to a calibrating server."""
    return bool(os.environ.get(CALIBRATE_ENV))


def request_id(piece: int) -> str:
    """Id of the request that carries piece number ``piece`` of the corpus."""
    return f"{_MARK}{piece}"


def piece_of(rid: str) -> int | None:
    """Number of the piece that a request carries; None for anything else, such as a warm-up."""
    number = rid.removeprefix(_MARK)
    return int(number) if number != rid and number.isdigit() else None
