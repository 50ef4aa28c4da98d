"""Which model a checkpoint is: one fingerprint for plans, statistics, evaluations and servers. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.files import sha256_of

_HASHED_BYTES: Final = 2 << 30
"""Weights up to this size enter the fingerprint byte for byte; of larger ones only names and sizes do."""


def fingerprint(config: Mapping[str, Any], folder: Path | None) -> str:
    """32 hex digits over config.json and, where they can be read, the weights.

    Args:
        config: the content of config.json.
        folder: the checkpoint's folder; None where this machine cannot read it.
    """
    state = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors*")) if folder else []
    whole = sum(file.stat().st_size for file in files) <= _HASHED_BYTES
    for file in files:
        state.update(f"{file.name} {file.stat().st_size}".encode())
        if whole:
            state.update(bytes.fromhex(sha256_of(file)))
    return state.hexdigest()[:32]
